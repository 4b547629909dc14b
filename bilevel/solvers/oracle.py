"""What a solver may ask of the follower's problem, for one leader held fixed and one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, explain
from bilevel.tree import Value, detach, grow, leaves, tree_map
from bilevel.updates.base import State, Update


class Oracle:
    """A first-order oracle: start, gradient, context, projection; it remembers what it has seen.

    Args:
        follower: The problem.
        leader: The leader, held fixed.
        batch: The data.
        differentiable: Whether gradients depend on where they are taken and on the leader, as far
            as derivatives are recorded at all, instead of being constants. For adjoints that
            differentiate through the solve.

    Attributes:
        evaluations: How many gradients were taken.
    """

    def __init__(
        self,
        follower: FollowerProblem,
        leader: LeaderProblem,
        batch: Batch,
        *,
        differentiable: bool = False,
    ) -> None:
        self._follower = follower
        self._leader = leader
        self._batch = batch
        self._differentiable = differentiable
        self.evaluations = 0
        self._start: Value | None = None
        self._before: Tensor | None = None
        self._after: Tensor | None = None
        self._gradient: Value | None = None

    def init(self) -> Value:
        """Where the solve starts.

        Returns:
            The follower's start.

        Raises:
            BilevelError: If the batch lacks what the follower reads.
            AttributeError: If another object lacks something.
            KeyError: Likewise.
        """
        try:
            self._start = self._follower.init(self._batch)
        except (AttributeError, KeyError) as error:
            explain(error, self._follower, self._batch)
            raise
        return self._start

    def gradient(self, y: Value) -> Value:
        """The direction in which each sample's objective improves fastest; no weight gradients.

        Args:
            y: Where.

        Returns:
            A tree of the shape of ``y``, constant unless the oracle is differentiable.
        """
        return self._look(y)[1]

    def gain_and_gradient(self, y: Value) -> tuple[Tensor, Value]:
        """The objective with its gradient, for the price of the gradient.

        Args:
            y: Where.

        Returns:
            What :meth:`gain`, as a constant, and :meth:`gradient` return.
        """
        objective, gradient = self._look(y)
        return self._follower.sign * objective, gradient

    def _look(self, y: Value) -> tuple[Tensor, Value]:
        """The objective as a constant, in its own sign, and the gradient of the gain."""
        if torch.is_inference_mode_enabled():
            raise BilevelError(
                "the follower is solved in torch.inference_mode(): no gradient can be taken there, "
                "not even that of y; use torch.no_grad()"
            )
        history = self._differentiable and torch.is_grad_enabled()
        with torch.enable_grad():
            point = tree_map(opened if self._differentiable else _cut, y)
            value = self._objective(point)
            if not value.requires_grad:
                raise BilevelError(
                    f"{type(self._follower).__name__}.objective does not depend on y: its gradient "
                    "cannot be taken; compute it from y without detach() or no_grad(), or use an "
                    "update with needs_gradient = False"
                )
            # Sums over the samples and turns, without an operation for either.
            turned = torch.full_like(value, self._follower.sign)
            slopes = torch.autograd.grad(
                value, leaves(point), turned, create_graph=history, materialize_grads=True
            )
        objective, gradient = value.detach(), grow(slopes, like=point)
        self.note(objective, gradient)
        return objective, gradient

    def note(self, objective: Tensor, gradient: Value, evaluations: int = 1) -> None:
        """Remembers what was seen on the way.

        Args:
            objective: At the first point, without history.
            gradient: Its gradient at the last one.
            evaluations: Of how many.
        """
        if self._before is None:
            self._before = objective
        self._gradient = gradient
        self.evaluations += evaluations

    def advance(self, update: Update, y: Value, state: State, steps: int) -> tuple[Value, State]:
        """Some steps of an update rule, each projected.

        Args:
            update: The rule.
            y: Where they start.
            state: What the rule returned at the last step; None at the first.
            steps: How many.

        Returns:
            The point of Y reached and the rule's state there.

        Raises:
            BilevelError: If the rule does not return a pair.
        """
        for _ in range(steps):
            gradient = self.gradient(y) if update.needs_gradient else None
            moved = update(y, gradient, self.context(y), state)
            if not isinstance(moved, tuple) or len(moved) != 2:
                raise BilevelError(
                    f"{type(update).__name__} returned a {type(moved).__name__}: an update gives "
                    "the moved variable and its state for the next step; return y, state"
                )
            y, state = self.project(moved[0]), moved[1]
        return y, state

    def judge(self, y: Value) -> None:
        """Evaluates the objective at the answer, and at the start if no gradient was taken there.

        Args:
            y: The answer.
        """
        with torch.no_grad():
            if self._before is None and self._start is not None:
                self._before = self._objective(self._start)
            self._after = self._objective(detach(y))

    def _objective(self, y: Value) -> Tensor:
        return self._follower.checked_objective(self._leader, y, self._batch)

    def stats(self) -> dict[str, Tensor]:
        """What was seen on the way.

        Returns:
            The statistics of :class:`~bilevel.Solution` that are known.
        """
        stats = {}
        for name, seen in (("objective_before", self._before), ("objective_after", self._after)):
            if seen is not None:
                stats[name] = seen.mean()
        if self._gradient is not None and self._before is not None:
            stats["gradient_norm"] = norms(
                detach(self._gradient), by_sample=self._before.dim() == 1
            ).mean()
        return stats

    def gain(self, y: Value) -> Tensor:
        """The follower's objective, turned so that more is better.

        Args:
            y: Where.

        Returns:
            One value a sample, ``(B,)``, or a scalar.
        """
        return self._follower.gain(self._leader, y, self._batch)

    def context(self, y: Value) -> Tensor | None:
        """What a learned update may read at ``y`` beside the gradient.

        Args:
            y: Where.

        Returns:
            The follower's context.
        """
        return self._follower.context(y, self._batch)

    def project(self, y: Value) -> Value:
        """The point of Y nearest to ``y``.

        Args:
            y: Any point.

        Returns:
            A point of Y.
        """
        return self._follower.project(y, self._batch)

    def restricted(self, chosen: Tensor) -> Oracle:
        """The same problem for some of the samples, so that a solve can leave those that are done.

        Args:
            chosen: Which samples, ``(B,)`` bool.

        Returns:
            An oracle of their own, which starts without statistics.

        Raises:
            BilevelError: If the batch holds something that is not a tensor with a row a sample.
        """
        return Oracle(self._follower, self._leader, _rows(self._batch, chosen))


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    """The chosen samples of a tensor, or of a tuple, list or dict of tensors."""
    if isinstance(batch, Tensor) and batch.shape[:1] == chosen.shape:
        return batch[chosen]
    if isinstance(batch, dict):
        return {name: _rows(part, chosen) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_rows(part, chosen) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    shape = f" of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else ""
    raise BilevelError(
        f"the batch holds a {type(batch).__name__}{shape}: a solver that goes on with some of "
        f"{len(chosen)} samples needs a row a sample; give a tensor of that length, or a tuple, "
        "list or dict of such tensors"
    )


def _cut(leaf: Tensor) -> Tensor:
    """A constant, to take a gradient at."""
    return leaf.detach().requires_grad_()


def opened(leaf: Tensor) -> Tensor:
    """The point itself, to take a gradient at: what depends on it goes on to what it depends on.

    Args:
        leaf: A tensor.

    Returns:
        The same numbers, asking for a gradient.
    """
    return leaf if leaf.requires_grad else leaf.view_as(leaf).requires_grad_()


def norms(gradient: Value, *, by_sample: bool) -> Tensor:
    """Euclidean norms.

    Args:
        gradient: A tree of tensors.
        by_sample: Whether each has a slice a sample.

    Returns:
        One a sample, ``(B,)``, or a scalar over everything that the batch shares.
    """
    squares = [leaf.square() for leaf in leaves(gradient)]
    if by_sample:
        rows = [square.reshape(len(square), -1).sum(1) for square in squares]
        return torch.stack(rows).sum(0).sqrt()
    return torch.stack([square.sum() for square in squares]).sum().sqrt()
