"""The base class of adjoints, and the one that a zero-sum game needs."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Set
from typing import ClassVar

from torch import Tensor

from bilevel.autograd_graph import passes
from bilevel.errors import BilevelError, HypergradientWarning, few
from bilevel.part import Part
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers import Solution, Solver
from bilevel.tree import Value, leaves


class Adjoint(Part, ABC):
    """Solves the follower so that the leader's gradient can be taken through the answer.

    Attributes:
        unused_remedy: What else :meth:`warn_unused` advises.
    """

    unused_remedy: ClassVar[str] = (
        "if the solver's steps read them, take Unrolled(), or Implicit(fixed_point=update)"
    )

    _warned: Set[str] = frozenset()

    @abstractmethod
    def solve(
        self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem, batch: Batch
    ) -> Solution:
        """Solves the follower's problem.

        Args:
            solver: The solver to use.
            follower: The follower's problem.
            leader: The leader.
            batch: The data.

        Returns:
            The answer, whose graph leads to the solver's parameters and, if the adjoint
            differentiates through the answer, to the leader's.
        """

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the adjoint applies to these parts; by default it always does.

        A game calls it when it is built, and those of the library before each solve.

        Args:
            solver: The solver.
            follower: The problem.
            leader: The leader.

        Raises:
            BilevelError: If it does not apply.
        """

    def batch_error(self) -> BilevelError:
        """The error for a batch that requires gradients, if the adjoint would drop them.

        Returns:
            The error, to be raised.
        """
        return BilevelError(
            f"the batch requires gradients: {self!r} gives those of the leader's parameters only; "
            "compute the batch inside objective and loss (for slopes in x, at "
            "x.detach().requires_grad_() there), or take Unrolled() or Implicit()"
        )

    def warn_once(self, condition: bool | Tensor, message: str) -> None:
        """Warns that a gradient should not be trusted, once for each adjoint and topic.

        Args:
            condition: Whether to warn. A tensor on another device than the CPU is not read, since
                that would synchronise: there is no warning then.
            message: What is wrong, why, and the remedy; the part before the colon is the topic.
        """
        topic = message.partition(":")[0]
        unread = isinstance(condition, Tensor) and not condition.is_cpu
        if topic in self._warned or unread or not condition:
            return
        self._warned = {*self._warned, topic}
        warnings.warn(f"{self!r}: {message}", HypergradientWarning, stacklevel=2)

    def warn_unused(self, names: list[str]) -> None:
        """Warns once of the leader's parameters on which the follower's answer does not depend.

        Args:
            names: Their names.
        """
        self.warn_once(
            bool(names),
            f"the follower ignores the leader's {few(names)}: nothing of its answer depends on "
            "them, so their gradient through y* is 0; if that is not meant, read them from the "
            "leader that FollowerProblem.objective is given, without detach(), and "
            f"{self.unused_remedy}; if they are there and the objective is piecewise linear (a "
            "quantile, a hinge), smooth it, or differentiate a solver with a formula by Unrolled()",
        )

    def warn_unread(self, loss: Tensor, y: Value) -> None:
        """Warns once of a leader's loss that does not depend on the answer.

        Args:
            loss: The loss, with its graph.
            y: The answer, with the graph that the adjoint gave it.
        """
        ends = {leaf.grad_fn for leaf in leaves(y)} - {None}
        self.warn_once(
            bool(ends) and not passes([loss], ends),
            "the leader's loss does not depend on the follower's answer: its gradient through y* "
            "is 0; compute the loss from the y that LeaderProblem.loss is given, without detach(), "
            "the weights of a network by torch.func.functional_call(network, y, inputs)",
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
        """Solves with the leader frozen: the graph leads to the solver's parameters only."""
        return solver.solve(follower, leader, batch, evaluate=False)

    def warn_unread(self, loss: Tensor, y: Value) -> None:
        """Does nothing: the answer is a constant."""
