"""Watching a game's iterates: do they converge, cycle or diverge?

:class:`Monitor` records them, ``dynamics`` names what a record does, and ``rotation`` finds the
turning in it.
"""

from bilevel.monitoring.dynamics import Verdict
from bilevel.monitoring.monitor import Monitor

__all__ = ["Monitor", "Verdict"]
