"""The noun `Adjoint`: how the follower's answer y*(θ) enters the leader's gradient.

    dL/dθ = ∂L/∂θ + (dy*/dθ)ᵀ ∂L/∂y

An adjoint decides what becomes of the second term:

    Detached     it is dropped, which is exact in a zero-sum game
    Unrolled     through the steps of the solve
    Implicit     from the condition that y* is optimal, by a linear system
    Penalty      from two more solves, tilted to either side; no second derivatives
    Forward      beside the solve, one number of θ after the other
    Sampled      from solves at other leaders; no derivatives at all

The last four need y* only, and not the way that led there: each is a :class:`Pullback`.
"""

from bilevel.adjoints.base import Adjoint, Detached
from bilevel.adjoints.forward import Forward
from bilevel.adjoints.implicit import Implicit
from bilevel.adjoints.penalty import Penalty
from bilevel.adjoints.pullback import Pullback
from bilevel.adjoints.sampled import Sampled
from bilevel.adjoints.unrolled import Unrolled

__all__ = [
    "Adjoint",
    "Detached",
    "Forward",
    "Implicit",
    "Penalty",
    "Pullback",
    "Sampled",
    "Unrolled",
]
