"""The parts of ``applications/hyper_cleaning.py``: the problem, its data, and what is told."""
