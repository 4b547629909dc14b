"""Detects whether the iterates of a game converge, cycle or diverge.

:class:`Monitor` records them, ``dynamics`` classifies a record, ``rotation`` detects a rotation,
and ``modes`` several at once.
"""

from bilevel.monitoring.dynamics import Verdict
from bilevel.monitoring.monitor import Monitor

__all__ = ["Monitor", "Verdict"]
