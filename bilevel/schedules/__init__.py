"""The noun `Schedule`: in which order the leader's θ and the solver's φ move.

    Simultaneous    both from one solve: in a zero-sum game one backward pass for both
    Alternating     one, then the other, each from a solve of its own
    ProximalPoint   the implicit step, by fixed-point iterations
    Extragradient   two of those iterations
    Optimistic      Simultaneous plus the change of its step since the last one
    Lookahead       k steps of any schedule, then part of the way back
    Consensus, SymplecticAdjustment, CompetitiveGradient
                    Simultaneous along gradients that second derivatives correct

All but the first two converge in games in which those two cycle or diverge.
"""

from bilevel.schedules.base import Alternating, Schedule, Simultaneous
from bilevel.schedules.corrected import (
    CompetitiveGradient,
    Consensus,
    Corrected,
    SymplecticAdjustment,
)
from bilevel.schedules.extrapolation import Extragradient, Lookahead, Optimistic, ProximalPoint
from bilevel.schedules.field import Field

__all__ = [
    "Alternating",
    "CompetitiveGradient",
    "Consensus",
    "Corrected",
    "Extragradient",
    "Field",
    "Lookahead",
    "Optimistic",
    "ProximalPoint",
    "Schedule",
    "Simultaneous",
    "SymplecticAdjustment",
]
