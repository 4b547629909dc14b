"""Modules of ``applications/hyper_cleaning.py``."""
