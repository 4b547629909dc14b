"""Modules of ``applications/limit_cycles.py``."""
