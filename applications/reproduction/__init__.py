"""What ``applications/reproduce.py`` sets beside what it measures: the paper's figures."""
