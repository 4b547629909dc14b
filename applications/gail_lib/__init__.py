"""Modules of ``applications/gail.py``."""
