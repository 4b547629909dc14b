"""The parts of ``applications/benchmarks/hypergradient.py``: the task, and each way to solve it."""
