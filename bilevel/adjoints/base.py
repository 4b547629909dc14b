"""What every adjoint is, and the one that a zero-sum game needs."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from bilevel.errors import HypergradientWarning
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers import Solution, Solver


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

    def state_dict(self) -> dict[str, Any]:
        """What the adjoint remembers between steps.

        Returns:
            Nothing, unless a subclass remembers something.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Args:
            state: What :meth:`state_dict` returned.
        """

    def doubt(self, reason: bool | Tensor, message: str) -> None:
        """Warns, once for each adjoint and message, that a gradient should not be trusted.

        Args:
            reason: Whether there is one. A tensor is looked at on the CPU only, since elsewhere
                that would wait for the device: what depends on one is not said there.
            message: What is wrong, why, and the remedy; the part before the colon names it.
        """
        topic = message.partition(":")[0]
        said = self.__dict__.setdefault("_said", set())
        if topic in said or (isinstance(reason, Tensor) and not reason.is_cpu) or not reason:
            return
        said.add(topic)
        warnings.warn(f"{self!r}: {message}", HypergradientWarning, stacklevel=2)

    def ignored(self, names: list[str]) -> None:
        """Says once on which of the leader's parameters the follower does not depend.

        Args:
            names: Theirs.
        """
        self.doubt(
            bool(names),
            f"the follower ignores the leader's {', '.join(names)}: nothing of its answer depends "
            "on them, so their gradient through y* is 0; if that is not meant, read them in "
            "FollowerProblem.objective, without detach()",
        )


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
