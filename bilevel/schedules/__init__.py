"""The noun `Schedule`: in which order the leader's θ and the solver's φ move.

    Simultaneous    both from one answer: in a zero-sum game one backward pass for both
    Alternating     one, then the other, each from an answer of its own
    ProximalPoint   the implicit step, by iterations of Simultaneous
    Extragradient   two of those iterations
    Optimistic      Simultaneous, corrected by how its step has changed
    Lookahead       k steps of any schedule, then part of the way back

The last four bring players together that circle under the first two.
"""

from bilevel.schedules.base import Alternating, Schedule, Simultaneous
from bilevel.schedules.extrapolation import Extragradient, Lookahead, Optimistic, ProximalPoint

__all__ = [
    "Alternating",
    "Extragradient",
    "Lookahead",
    "Optimistic",
    "ProximalPoint",
    "Schedule",
    "Simultaneous",
]
