"""Modules of ``applications/benchmarks/hypergradient.py``."""
