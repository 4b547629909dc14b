"""The noun `Adjoint`: how the follower's answer y*(θ) enters the leader's gradient.

    dL/dθ = ∂L/∂θ + (dy*/dθ)ᵀ ∂L/∂y

An adjoint decides what becomes of the second term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solver import Solution, Solver


class Adjoint(ABC):
    """Solves the follower so that the answer carries the history that θ's gradient needs."""

    @abstractmethod
    def solve(
        self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem, batch: Batch
    ) -> Solution:
        """Answers for the follower.

        Args:
            solver: The solver to use.
            follower: The follower's problem.
            leader: The leader.
            batch: The data.

        Returns:
            The answer, whose history leads to the solver's parameters and, where the adjoint
            differentiates through the answer, to the leader's.
        """


class Detached(Adjoint):
    r"""Treats the answer as a constant: dL/dθ ≈ ∂L/∂θ.

    Exact where the leader's loss is the follower's own objective and the answer is optimal
    (Danskin, 1967), as in a :class:`~bilevel.ZeroSum` game. Elsewhere it drops a term, so a game
    that is not zero-sum has to ask for it by name.

    Example:
        >>> Detached()
        Detached()
    """

    def solve(
        self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem, batch: Batch
    ) -> Solution:
        """Answers with the leader frozen: the history leads to the solver's parameters only."""
        return solver.solve(follower, leader, batch, evaluate=False)

    def __repr__(self) -> str:
        return "Detached()"
