"""The base class of solvers, and what they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bilevel.arguments import one_of
from bilevel.errors import BilevelError
from bilevel.frozen import Mode, frozen
from bilevel.precision import uncached_autocast
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers.checks import check_answer
from bilevel.solvers.oracle import Oracle
from bilevel.tree import Value, leaves

MEANS = ("objective_before", "objective_after", "gradient_norm")
"""The statistics of a solution that are means over the samples."""


@dataclass(frozen=True)
class Solution:
    """The follower's answer, with statistics of the solve.

    Args:
        value: y, a point of Y; its graph leads to the solver's parameters, if it has any.
        stats: Detached scalars on the device: ``objective_before`` and ``objective_after`` (means
            over the batch, with the objective's own sign) and ``gradient_norm`` (mean over the
            samples, at the last point where the gradient was taken). Adjoints add diagnostics of
            the leader's gradient.
        evaluations: The number of gradient evaluations of the solve, or of evaluations of the gain
            by a solver without gradients.
        start: The point where the solve began, detached; None if it asked for none.
    """

    value: Any
    stats: dict[str, Tensor]
    evaluations: int = 0
    start: Any = None

    def counted(self) -> Solution:
        """The same, with the number of evaluations among the statistics, as adjoints give it.

        Returns:
            A copy; the tensors are shared.
        """
        # y may be bfloat16; unlike torch.tensor, torch.full does not wait for the device.
        count = torch.full((), float(self.evaluations), device=leaves(self.value)[0].device)
        return replace(self, stats={**self.stats, "evaluations": count})


class Solver(nn.Module, ABC):
    """Solves the follower's problem for a fixed leader, and leaves the leader as it was.

    A subclass implements :meth:`answer`.

    Args:
        leader_mode: The leader's mode during the solve: ``"eval"``, or ``"train"`` with its
            BatchNorm statistics kept.

    Attributes:
        kept: Where the next solve of a solver that is not :attr:`repeatable` goes on; None if it
            starts anew.
    """

    kept: Any = None

    def __init__(self, *, leader_mode: Mode = "eval") -> None:
        super().__init__()
        self.leader_mode: Mode = one_of("leader_mode", leader_mode, get_args(Mode))

    @property
    def repeatable(self) -> bool:
        """Whether a solve leaves the solver's state unchanged, so that it can be repeated.

        Returns:
            True, unless the solver starts from its last answer.
        """
        return True

    def check_repeatable(self, use: str, *, otherwise: str = "") -> None:
        """Checks that the solver can solve several times from the same start.

        Args:
            use: What solves again, the first clause of the error.
            otherwise: What helps too, its last clause.

        Raises:
            BilevelError: If it starts from its last answer.
        """
        if not self.repeatable:
            raise BilevelError(
                f"{use}, but {type(self).__name__} starts from its last answer at each solve: give "
                f"it warm_start=False{otherwise}"
            )

    def project(self, follower: FollowerProblem, batch: Batch) -> None:
        """Projects the parameters onto Y, in place, if they are the answer.

        Args:
            follower: The problem.
            batch: The data.
        """

    def check(self, follower: FollowerProblem) -> None:
        """Checks that the solver is made for a problem; by default it is for any.

        Args:
            follower: The problem.

        Raises:
            BilevelError: If it is not, in an override.
        """

    @abstractmethod
    def answer(self, oracle: Oracle) -> Value:
        """Computes the answer.

        Args:
            oracle: Evaluates the follower's start, gradient, context and projection.

        Returns:
            A point of Y.
        """

    def checked_answer(self, oracle: Oracle) -> Value:
        """The answer, if it has the form of the start.

        Args:
            oracle: See :meth:`answer`.

        Returns:
            The answer.

        Raises:
            BilevelError: If it has not.
        """
        value = self.answer(oracle)
        check_answer(type(self).__name__, value, oracle.start)
        return value

    def solve(
        self,
        follower: FollowerProblem,
        leader: LeaderProblem,
        batch: Batch,
        *,
        evaluate: bool = True,
    ) -> Solution:
        """Solves the problem of ``follower`` while ``leader`` is held fixed.

        Args:
            follower: The problem to solve.
            leader: The leader; its parameters, gradients, buffers and training flags are left
                bit for bit as they were.
            batch: The data.
            evaluate: Whether to evaluate the objective at the answer too, by one forward pass. Not
                needed in training, where the leader's loss is evaluated there anyway.

        Returns:
            The answer with its statistics.

        Raises:
            BilevelError: If the batch does not suit the problem, or the objective's shape is wrong.
        """
        self.check(follower)
        with frozen(leader, self.leader_mode), uncached_autocast():
            oracle = Oracle(follower, leader, batch)
            value = self.checked_answer(oracle)
            if evaluate:
                oracle.evaluate(value)
        return Solution(value, oracle.stats(), oracle.evaluations, oracle.start)
