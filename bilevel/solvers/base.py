"""What every solver is, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.frozen import Mode, frozen
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers.oracle import Oracle
from bilevel.tree import Value


@dataclass(frozen=True)
class Solution:
    """The follower's answer and what is needed to judge it.

    Args:
        value: y, a point of Y; its history leads to the solver's parameters, where it has any.
        stats: Scalars on the device, without history: ``objective_before`` and ``objective_after``
            (means over the batch, in the objective's own sign) and ``gradient_norm`` (mean over the
            samples, at the last point where the gradient was taken). Adjoints add what is needed
            to judge the leader's gradient.
        evaluations: How many gradients of the objective were taken.
    """

    value: Value
    stats: dict[str, Tensor]
    evaluations: int = 0


class Solver(nn.Module, ABC):
    """Gives the follower's answer to a fixed leader, and leaves the leader as it was.

    A subclass writes :meth:`answer`.

    Args:
        leader_mode: In which mode the leader computes meanwhile: ``"eval"``, or ``"train"`` with
            its BatchNorm statistics kept.
    """

    def __init__(self, *, leader_mode: Mode = "eval") -> None:
        super().__init__()
        if leader_mode not in ("eval", "train"):
            raise BilevelError(
                f"leader_mode is {leader_mode!r}: a leader computes as deployed or as in training; "
                'give "eval" or "train"'
            )
        self.leader_mode: Mode = leader_mode

    @property
    def repeatable(self) -> bool:
        """Whether a solve leaves no trace, so that another one of the same problem is a look again.

        Returns:
            True, unless the solver goes on where its last answer was.
        """
        return True

    def project(self, follower: FollowerProblem, batch: Batch) -> None:
        """Where the parameters are the answer: puts them back into Y, in place.

        Args:
            follower: The problem.
            batch: The data.
        """

    @abstractmethod
    def answer(self, oracle: Oracle) -> Value:
        """Computes the answer.

        Args:
            oracle: Starts, gradients, contexts and projections of the follower's problem at hand.

        Returns:
            A point of Y.
        """

    def solve(
        self,
        follower: FollowerProblem,
        leader: LeaderProblem,
        batch: Batch,
        *,
        evaluate: bool = True,
    ) -> Solution:
        """Answers for ``follower`` while ``leader`` is held fixed.

        Args:
            follower: The problem to solve.
            leader: The leader; its parameters, gradients, buffers and training flags are left
                bit for bit as they were.
            batch: The data.
            evaluate: Also evaluate the objective at the answer, one forward pass. A schedule that
                passes the leader through the answer anyway leaves it out.

        Returns:
            The answer with its statistics.

        Raises:
            BilevelError: If the batch does not suit the problem or the objective has a wrong shape.
        """
        with frozen(leader, self.leader_mode):
            oracle = Oracle(follower, leader, batch)
            value = self.answer(oracle)
            if evaluate:
                oracle.judge(value)
        return Solution(value, oracle.stats(), oracle.evaluations)
