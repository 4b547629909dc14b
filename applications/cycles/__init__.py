"""The parts of ``applications/limit_cycles.py``: what is played, how, and how it is drawn."""
