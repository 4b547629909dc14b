"""The noun `Adjoint`: how the follower's answer y*(θ) enters the leader's gradient.

    dL/dθ = ∂L/∂θ + (dy*/dθ)ᵀ ∂L/∂y

An adjoint decides how the second term is computed:

    Detached     not at all, which is exact in a zero-sum game
    Unrolled     by reverse-mode differentiation through the steps of the solve
    Implicit     from the optimality condition of y*, by a linear system
    Penalty      from the solutions of two perturbed problems; no second derivatives
    Forward      by forward-mode differentiation of the solve, one element of θ at a time
    Sampled      from solves at perturbed θ; no derivatives at all

The last four record none of the iterates that led to y*: each is a :class:`Pullback`. With a
warm-started solver, the last two differentiate through the steps of earlier solves too.
"""

from bilevel.adjoints.base import Adjoint, Detached
from bilevel.adjoints.forward import Forward
from bilevel.adjoints.implicit import Implicit
from bilevel.adjoints.penalty import Penalty
from bilevel.adjoints.pullback import Pullback
from bilevel.adjoints.sampled import Sampled
from bilevel.adjoints.solved import SolvedProblem
from bilevel.adjoints.unrolled import Unrolled

__all__ = [
    "Adjoint",
    "Detached",
    "Forward",
    "Implicit",
    "Penalty",
    "Pullback",
    "Sampled",
    "SolvedProblem",
    "Unrolled",
]
