"""Modules of ``applications/reproduce.py``."""
