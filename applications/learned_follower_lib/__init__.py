"""Modules of ``applications/learned_follower.py``."""
