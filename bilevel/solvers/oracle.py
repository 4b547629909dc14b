"""The follower's problem for a fixed leader and batch, as solvers evaluate it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel.autograd_graph import check_second_derivatives
from bilevel.errors import BilevelError, explain_inference_only, explained
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers.checks import check_point, check_start, explain_not_floating
from bilevel.solvers.selection import select
from bilevel.tree import (
    Value,
    detach,
    from_leaves,
    handed,
    leaves,
    norms,
    requiring_grad,
    tree_map,
    versions,
)
from bilevel.updates.base import State, Update, explain_types


class Oracle:
    """A first-order oracle: start, gradient, context, projection. It collects statistics.

    Args:
        follower: The problem.
        leader: The leader, held fixed.
        batch: The data.
        differentiable: Whether gradients have a graph that leads to the point and the leader,
            unless grad mode is off, instead of being constants. For adjoints that differentiate
            through the solve.

    Attributes:
        follower, leader, batch: The arguments, for a solver with a formula of its own.
        evaluations: The number of gradient evaluations; a solver without gradients counts those of
            the gain.
        start: The start of the solve, detached; None before.
    """

    def __init__(
        self,
        follower: FollowerProblem,
        leader: LeaderProblem,
        batch: Batch,
        *,
        differentiable: bool = False,
    ) -> None:
        self.follower: Any = follower
        self.leader: Any = leader
        self.batch = batch
        self._differentiable = differentiable
        self.evaluations = 0
        self._walked = False
        self.start: Value | None = None
        self._before: Tensor | None = None
        self._after: Tensor | None = None
        self._gradient: Value | None = None
        self._versions: list[int] = []

    def init(self) -> Any:
        """The start of the solve.

        Returns:
            The follower's start.

        Raises:
            BilevelError: If the batch lacks a field that the follower reads, or the start is no
                tensor or dict of tensors, or one with frozen parameters.
        """
        start = explained(self.follower, self.follower.init, self.batch)
        check_start(type(self.follower).__name__, start)
        if self.start is None:  # a random search draws many
            self.start = detach(start)
        return start

    def gradient(self, y: Value) -> Any:
        """The gradient of each sample's gain in y; no weight gradients are computed.

        Args:
            y: The point.

        Returns:
            A tree of the shape of ``y``, constant unless the oracle is differentiable.
        """
        return self._objective_and_gradient(y)[1]

    def gain_and_gradient(self, y: Value) -> tuple[Tensor, Any]:
        """The gain and its gradient, at the cost of the gradient.

        Args:
            y: The point.

        Returns:
            What :meth:`gain` returns, detached, and what :meth:`gradient` returns.
        """
        objective, gradient = self._objective_and_gradient(y)
        return self.follower.sign * objective, gradient

    def _objective_and_gradient(self, y: Value) -> tuple[Tensor, Value]:
        """The objective, detached and with its own sign, and the gradient of the gain."""
        if torch.is_inference_mode_enabled():
            raise BilevelError(
                "the follower is solved in torch.inference_mode(): no gradient can be taken there, "
                "not even that of y; use torch.no_grad()"
            )
        create_graph = self._differentiable and torch.is_grad_enabled()
        with torch.enable_grad():
            try:
                point = tree_map(requiring_grad if self._differentiable else _detached_leaf, y)
            except RuntimeError as error:
                explain_not_floating(type(self.follower).__name__, y, error)
                raise
            value = self._objective(point)
            grads = self._slopes(value, leaves(point), create_graph=create_graph)
        objective, gradient = value.detach(), from_leaves(grads, like=point)
        self.record(objective, gradient)
        return objective, gradient

    def _slopes(
        self, value: Tensor, inputs: list[Tensor], *, create_graph: bool
    ) -> tuple[Tensor | None, ...]:
        """The gradient of the gain, whose objective this is."""
        # Sums over the samples and applies the sign, without an operation for either.
        signs = torch.full_like(value, self.follower.sign)
        grads: tuple[Tensor | None, ...] = ()
        if value.requires_grad:
            if create_graph and not self._walked:  # once a solve: it walks through the graph
                check_second_derivatives(value, inputs)
                self._walked = True
            try:
                grads = torch.autograd.grad(
                    value, inputs, signs, create_graph=create_graph, allow_unused=True
                )
            except RuntimeError as error:
                explain_inference_only(error, self.follower)
                raise
        if all(grad is None for grad in grads):
            raise BilevelError(
                f"{type(self.follower).__name__}.objective does not depend on y: its gradient "
                "cannot be taken; compute it from y without detach() or no_grad(), or use an "
                "update with needs_gradient = False"
            )
        return grads

    def record(self, objective: Tensor, gradient: Value) -> None:
        """Adds an evaluation of the gradient to the statistics.

        Args:
            objective: The objective at the point, detached.
            gradient: The gradient there.
        """
        if self._before is None:
            self._before = objective.clone()  # it may be a part of y, changed in place
        self._gradient = gradient
        self._versions = versions(gradient)
        self.evaluations += 1

    def advance(self, update: Update, y: Value, state: State, steps: int) -> tuple[Any, State]:
        """Takes steps of an update, each followed by the projection.

        Args:
            update: The update.
            y: The first point.
            state: The update's state there; None at first.
            steps: The number of steps.

        Returns:
            The last point and the update's state there.

        Raises:
            BilevelError: If the update does not return a pair, or a point of another kind or shape,
                or has parameters of another type than y.
            RuntimeError: If the update fails otherwise.
        """
        for _ in range(steps):
            gradient = self.gradient(y) if update.needs_gradient else None
            context = self.context(y) if update.needs_context else None
            try:
                moved = update(y, gradient, context, state)
            except RuntimeError as error:
                explain_types(update, y, error)
                raise
            if not isinstance(moved, tuple) or len(moved) != 2:
                raise BilevelError(
                    f"{type(update).__name__} returned a {type(moved).__name__}: an update gives "
                    "the moved variable and its state for the next step; return y, state"
                )
            y, state = self.project(check_point(type(update).__name__, moved[0], y)), moved[1]
        return y, state

    def evaluate(self, y: Value) -> None:
        """Evaluates the objective at the answer, and at the start if no gradient was taken there.

        Args:
            y: The answer.
        """
        with torch.no_grad():
            if self._before is None and self.start is not None:
                self._before = self._objective(self.start)
            self._after = self._objective(detach(y))

    def _objective(self, y: Value) -> Tensor:
        return self.follower.checked_objective(self.leader, y, self.batch)

    def stats(self) -> dict[str, Tensor]:
        """The statistics so far.

        Returns:
            The statistics of :class:`~bilevel.Solution` that are known.

        Raises:
            BilevelError: If the gradient, of which one is the norm, was changed in place.
        """
        stats = {}
        for name, value in (("objective_before", self._before), ("objective_after", self._after)):
            if value is not None:
                stats[name] = value.mean()
        if self._gradient is not None and self._before is not None:
            if versions(self._gradient) != self._versions:
                raise BilevelError(
                    "a gradient is changed in place, whose norm is a statistic of the "
                    "solve: compute a new tensor, g = g.sign() in place of g.sign_()"
                )
            stats["gradient_norm"] = norms(
                detach(self._gradient), by_sample=self._before.dim() == 1
            ).mean()
        return stats

    def gain(self, y: Value) -> Tensor:
        """The follower's gain: its objective if it maximises, else the negative.

        Args:
            y: The point.

        Returns:
            One value per sample, ``(B,)``, or a scalar.
        """
        return self.follower.gain(self.leader, y, self.batch)

    def context(self, y: Value) -> Any:
        """What updates read in addition to the gradient.

        Args:
            y: The point.

        Returns:
            The follower's context.
        """
        return explained(self.follower, self.follower.context, handed(y), self.batch)

    def start_at(self, y: Value) -> Any:
        """Begins the solve at a point of another solve instead of :meth:`init`.

        Args:
            y: Any point.

        Returns:
            The nearest point of this problem's Y.
        """
        start = self.project(y)
        self.start = detach(start)
        return start

    def project(self, y: Value) -> Any:
        """The point of Y nearest to ``y``.

        Args:
            y: Any point.

        Returns:
            A point of Y.

        Raises:
            BilevelError: If the follower returns no tensor for a tensor, no dict of its names, or
                other shapes, or the batch lacks a field that it reads.
        """
        nearest = explained(self.follower, self.follower.project, y, self.batch)
        if nearest is y:
            return y
        return check_point(f"{type(self.follower).__name__}.project", nearest, y)

    def of(self, follower: FollowerProblem) -> Oracle:
        """The oracle of another problem, for the same leader and batch, as differentiable.

        Args:
            follower: The problem.

        Returns:
            An oracle with statistics of its own.
        """
        return type(self)(follower, self.leader, self.batch, differentiable=self._differentiable)

    def restricted(self, chosen: Tensor) -> Oracle:
        """The same problem for some of the samples, so that a solver can drop finished ones.

        Args:
            chosen: A mask, ``(B,)`` bool.

        Returns:
            An oracle with statistics of its own.

        Raises:
            BilevelError: If the batch contains something else than tensors with a row per sample.
        """
        some = select(self.batch, chosen)
        return type(self)(self.follower, self.leader, some, differentiable=self._differentiable)


def _detached_leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()
