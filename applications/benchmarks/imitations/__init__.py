"""The parts of ``applications/benchmarks/imitation.py``."""
