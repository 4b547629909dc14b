"""A follower's problem as it was answered, to be asked about again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from bilevel.frozen import frozen
from bilevel.parameters import Parameters, with_parameters
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.replay import Moment
from bilevel.solvers import Oracle, Solution, Solver
from bilevel.tree import Value

_T = TypeVar("_T")


@dataclass(frozen=True)
class Answered:
    """The follower's problem as it was answered, for the backward pass.

    Args:
        solver: What answered.
        follower: The problem.
        leader: The leader; :meth:`at` gives it its parameters and the mode it was in.
        batch: The data.
        theta: The leader's parameters, by name.
        y: The answer.
        wanted: The names of the parameters whose gradients are asked for.
        moment: How solver and leader computed before the solve.
        stats: The solution's statistics, to be written into.
    """

    solver: Solver
    follower: FollowerProblem
    leader: LeaderProblem
    batch: Batch
    theta: Parameters
    y: Value
    wanted: tuple[str, ...]
    moment: Moment
    stats: dict[str, Tensor]

    def at(self, theta: Parameters, function: Callable[[Oracle], _T], follower: Any = None) -> _T:
        """Computes something as in the solve, for a leader with other parameters.

        Args:
            theta: Its parameters, by name; those that are missing are as in the solve.
            function: What to compute, of a differentiable oracle.
            follower: Another problem to ask about.

        Returns:
            What ``function`` returned.
        """
        oracle = Oracle(follower or self.follower, self.leader, self.batch, differentiable=True)

        def call() -> _T:
            with frozen(self.leader, self.solver.leader_mode, differentiable=True):
                return function(oracle)

        with self.moment.again():
            result = with_parameters(self.leader, {**self.theta, **theta}, call)
        self.stats["evaluations"] += oracle.evaluations
        return result

    def solved(self, theta: Any) -> Value:
        """Solves the follower again, with the same random numbers, for another leader.

        Args:
            theta: Its parameters, by name; those that are missing are as in the solve.

        Returns:
            The answer, a constant.
        """

        def call() -> Solution:
            return self.solver.solve(self.follower, self.leader, self.batch, evaluate=False)

        with self.moment.again(), torch.no_grad():
            solution = with_parameters(self.leader, {**self.theta, **theta}, call)
        self.stats["evaluations"] += solution.evaluations
        return solution.value

    def note(self, **numbers: Tensor) -> None:
        """Adds to the solution's statistics.

        Args:
            **numbers: Their names and values.
        """
        self.stats.update({name: number.detach() for name, number in numbers.items()})
