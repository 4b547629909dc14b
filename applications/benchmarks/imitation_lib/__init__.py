"""Modules of ``applications/benchmarks/imitation.py``."""
