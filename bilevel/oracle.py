"""What a solver may ask of the follower's problem, for one leader held fixed and one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, reading
from bilevel.tree import Value, detach, leaves, tree_map


class Oracle:
    """A first-order oracle: start, gradient, context, projection; it remembers what it has seen.

    Args:
        follower: The problem.
        leader: The leader, held fixed.
        batch: The data.
    """

    def __init__(self, follower: FollowerProblem, leader: LeaderProblem, batch: Batch) -> None:
        self._follower = follower
        self._leader = leader
        self._batch = batch
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
        """
        with reading(self._follower, self._batch):
            self._start = self._follower.init(self._batch)
        return self._start

    def gradient(self, y: Value) -> Value:
        """The direction in which each sample's objective improves fastest; no weight gradients.

        Args:
            y: Where.

        Returns:
            A constant of the shape of ``y``.
        """
        return self.gain_and_gradient(y)[1]

    def gain_and_gradient(self, y: Value) -> tuple[Tensor, Value]:
        """The objective with its gradient, for the price of the gradient.

        Args:
            y: Where.

        Returns:
            What :meth:`gain` and :meth:`gradient` return, both constants.

        Raises:
            BilevelError: If the objective does not depend on ``y``.
        """
        with torch.enable_grad():
            point = tree_map(lambda leaf: leaf.detach().requires_grad_(), y)
            gain = self.gain(point)
            if not gain.requires_grad:
                raise BilevelError(
                    f"{type(self._follower).__name__}.objective does not depend on y: its gradient "
                    "cannot be taken; compute it from y without detach() or no_grad(), or use an "
                    "update with needs_gradient = False"
                )
            slopes = iter(torch.autograd.grad(gain.sum(), leaves(point), materialize_grads=True))
        if self._before is None:
            self._before = gain.detach()
        self._gradient = tree_map(lambda _: next(slopes), point)
        return gain.detach(), self._gradient

    def judge(self, y: Value) -> None:
        """Evaluates the objective at the answer, and at the start if no gradient was taken there.

        Args:
            y: The answer.
        """
        with torch.no_grad():
            if self._before is None and self._start is not None:
                self._before = self.gain(self._start)
            self._after = self.gain(detach(y))

    def stats(self) -> dict[str, Tensor]:
        """What was seen on the way.

        Returns:
            The statistics of :class:`~bilevel.Solution` that are known.
        """
        stats = {}
        for name, gain in (("objective_before", self._before), ("objective_after", self._after)):
            if gain is not None:
                stats[name] = self._follower.sign * gain.mean()
        if self._gradient is not None and self._before is not None:
            stats["gradient_norm"] = _norms(
                self._gradient, by_sample=self._before.dim() == 1
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


def _norms(gradient: Value, *, by_sample: bool) -> Tensor:
    """The Euclidean norm a sample, ``(B,)``, or over everything that the batch shares."""
    squares = [leaf.square() for leaf in leaves(gradient)]
    if by_sample:
        return torch.stack([square.flatten(1).sum(1) for square in squares]).sum(0).sqrt()
    return torch.stack([square.sum() for square in squares]).sum().sqrt()
