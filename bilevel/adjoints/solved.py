"""A follower's problem with its solution, as the backward pass of an adjoint needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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

Gradients = Mapping[str, Tensor | None]
"""Gradients by name; None where nothing depends on the tensor."""


@dataclass(frozen=True)
class SolvedProblem:
    """The follower's problem and its solution y*, for the backward pass.

    Args:
        solver: The solver that computed y*.
        follower: The problem.
        leader: The leader; :meth:`evaluate` gives it the parameters and the mode of the solve.
        batch: The data.
        theta: The leader's parameters, by name, and tensors of the batch whose gradients are
            required: ``batch[0]``, ….
        y: y*.
        wanted: The names of those whose gradients are required.
        snapshot: The state of leader and solver before the solve.
        stats: The solution's statistics, to which :meth:`record` adds.
        kept_before: What a warm-started solver had ``kept`` before the solve; None at a new start.
        kept_after: What it has kept since; None if it keeps nothing.
        start: The point where the solve began; None if the solver asked for none.
        feed: Builds the batch of its tensors in ``theta``; None if none of their gradients is
            required.
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
    kept_before: Any = None
    kept_after: Any = None
    start: Value | None = None
    feed: Callable[[Parameters], Batch] | None = None

    def variables(self) -> Parameters:
        """The tensors whose gradients are wanted, as leaves to differentiate in.

        Returns:
            The leaves, by name.
        """
        return {name: self.theta[name].detach().requires_grad_() for name in self.wanted}

    def evaluate(
        self,
        theta: Parameters,
        function: Callable[[Oracle], _T],
        *,
        kind: Callable[..., Oracle] = Oracle,
    ) -> _T:
        """Calls a function of the problem's oracle as in the solve, for another θ.

        Args:
            theta: The tensors, by name; those that are missing are as in the solve.
            function: Called with a differentiable oracle.
            kind: The class of the oracle.

        Returns:
            What ``function`` returned.
        """
        with (
            self._at(theta) as batch,
            frozen(self.leader, self.solver.leader_mode, differentiable=True),
        ):
            oracle = kind(self.follower, self.leader, batch, differentiable=True)
            result = function(oracle)
        self.stats["evaluations"] += oracle.evaluations
        return result

    @contextmanager
    def _at(self, theta: Parameters) -> Iterator[Batch]:
        """Within the block all is as in the solve, but for these tensors; yields the batch."""
        given = {**self.theta, **theta}
        with self.snapshot.restored(), lent(self.leader, given):
            yield self.feed(given) if self.feed else self.batch

    def solve(self, theta: Parameters, kept: Any = None) -> tuple[Value, Any]:
        """Solves the problem again for other leader parameters, with the same random numbers.

        Args:
            theta: The parameters, by name; those that are missing are as in the solve.
            kept: See :meth:`going_on_from`.

        Returns:
            The solution, a constant, and what a warm-started solver keeps of it.
        """
        with self._at(theta) as batch, torch.no_grad():
            parts = self.follower, self.leader, batch
            solve = partial(self.solver.solve, *parts, evaluate=False)
            solution, kept = self.going_on_from(kept, solve)
        self.stats["evaluations"] += solution.evaluations
        return solution.value, kept

    def going_on_from(self, kept: Any, solve: Callable[[], _T]) -> tuple[_T, Any]:
        """Runs a warm-started solver from another point, and leaves its last answer as it was.

        Args:
            kept: The point, as the solver keeps it; None for a new start.
            solve: Runs the solver.

        Returns:
            What ``solve`` returned, and what the solver has kept then.
        """
        solver = self.solver
        if solver.repeatable:
            return solve(), None
        before, solver.kept = solver.kept, kept
        try:
            return solve(), solver.kept
        finally:
            solver.kept = before

    def record(self, **stats: Tensor) -> None:
        """Adds to the solution's statistics.

        Args:
            **stats: Scalars by name.
        """
        self.stats.update({name: value.detach() for name, value in stats.items()})
