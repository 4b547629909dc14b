"""The parts of ``applications/robust_eval.py``: what is evaluated, and on which images."""
