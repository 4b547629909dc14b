"""Modules of ``applications/robust_eval.py``."""
