"""The noun `Solver`: the loop that computes y*.

Every answer of the follower comes from a `Solver`, which is an ``nn.Module``. Projected gradient
has no parameters, a learned attacker has meta-parameters, and a follower that is itself trained by
gradient steps is a solver whose parameters *are* the answer. So every schedule needs one code path:

    Iterative(update, steps)    y ← Π_Y(update(y, ∇, context)), repeated
    Parametric(y)               y is the solver's own parameters; its optimizer moves them

A solver evaluates the follower's problem by an :class:`Oracle`.
"""

from bilevel.solvers.base import Solution, Solver
from bilevel.solvers.iterative import Iterative
from bilevel.solvers.oracle import Oracle
from bilevel.solvers.parametric import Parametric

__all__ = ["Iterative", "Oracle", "Parametric", "Solution", "Solver"]
