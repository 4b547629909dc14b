"""A follower's problem with its solution, as the backward pass of an adjoint needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from bilevel.frozen import frozen
from bilevel.parameters import Parameters, lent
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.snapshot import Snapshot
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value

_T = TypeVar("_T")


def is_constrained(follower: FollowerProblem) -> bool:
    """Whether the set Y of a problem may be another one than the whole space.

    Args:
        follower: The problem.

    Returns:
        True if it has a projection of its own.
    """
    return getattr(follower.project, "__func__", None) is not FollowerProblem.project


@dataclass(frozen=True)
class SolvedProblem:
    """The follower's problem and its solution y*, for the backward pass.

    Args:
        solver: The solver that computed y*.
        follower: The problem.
        leader: The leader; :meth:`evaluate` gives it the parameters and the mode of the solve.
        batch: The data.
        theta: The leader's parameters, by name.
        y: y*.
        wanted: The names of the parameters whose gradients are required.
        snapshot: The state of leader and solver before the solve.
        stats: The solution's statistics, to which :meth:`record` adds.
    """

    solver: Solver
    follower: FollowerProblem
    leader: LeaderProblem
    batch: Batch
    theta: Parameters
    y: Value
    wanted: tuple[str, ...]
    snapshot: Snapshot
    stats: dict[str, Tensor]

    def evaluate(
        self,
        theta: Parameters,
        function: Callable[[Oracle], _T],
        follower: FollowerProblem | None = None,
        *,
        kind: type[Oracle] = Oracle,
    ) -> _T:
        """Calls a function of the problem's oracle as in the solve, for other leader parameters.

        Args:
            theta: The parameters, by name; those that are missing are as in the solve.
            function: Called with a differentiable oracle.
            follower: Another problem, to evaluate instead of this one.
            kind: The class of the oracle.

        Returns:
            What ``function`` returned.
        """
        oracle = kind(follower or self.follower, self.leader, self.batch, differentiable=True)
        with (
            self.snapshot.restored(),
            lent(self.leader, {**self.theta, **theta}),
            frozen(self.leader, self.solver.leader_mode, differentiable=True),
        ):
            result = function(oracle)
        self.stats["evaluations"] += oracle.evaluations
        return result

    def solve(self, theta: Any) -> Value:
        """Solves the problem again for other leader parameters, with the same random numbers.

        Args:
            theta: The parameters, by name; those that are missing are as in the solve.

        Returns:
            The solution, a constant.
        """
        given = {**self.theta, **theta}
        with self.snapshot.restored(), torch.no_grad(), lent(self.leader, given):
            solution = self.solver.solve(self.follower, self.leader, self.batch, evaluate=False)
        self.stats["evaluations"] += solution.evaluations
        return solution.value

    def record(self, **stats: Tensor) -> None:
        """Adds to the solution's statistics.

        Args:
            **stats: Scalars by name.
        """
        self.stats.update({name: value.detach() for name, value in stats.items()})
