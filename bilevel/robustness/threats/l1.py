"""Perturbations of an image, bounded in the L1 norm: a few values that change much."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bilevel.arguments import positive
from bilevel.robustness.data.batches import Batch, per_sample
from bilevel.robustness.threats.bounds import PIXELS, Bounds, clipped, rounding, width
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.updates import Update
from bilevel.updates.base import State

_BISECTIONS = 40
_SHARE = 0.01  # of the values, that a step moves


class L1(Perturbation):
    """‖δ‖₁ ≤ ε for each image.

    Other than in L2, δ is projected onto the intersection of ball and box: after one and then the
    other a large part of the budget would be left (Croce & Hein, 2021).

    Args:
        eps: ε; 12 is usual for CIFAR-10.
        start: Radius of the random start.
        loss: The loss to maximise.
        bounds: The lowest and the highest value of other data, see :class:`Perturbation`.

    Example:
        >>> from bilevel.robustness import Batch
        >>> batch = Batch(torch.full((1, 1, 1, 3), 0.5), torch.tensor([0]))
        >>> L1(0.5).project(torch.tensor([[[[0.5, -0.3, 0.1]]]]), batch)
        tensor([[[[ 0.3500, -0.1500,  0.0000]]]])
    """

    index = "₁"

    def clip(self, delta: Tensor) -> Tensor:
        """δ shrunk toward 0: sign(δ) ∘ max(abs(δ) − τ, 0), with the τ for which its norm is ε."""
        return self._shrunk(delta, lambda point: point)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        """The nearest δ with ‖δ‖₁ ≤ ε and x + δ within the bounds: shrunk, then clipped to them."""
        if self.bounds is None:
            return self.clip(y)
        return self._shrunk(y, lambda point: clipped(batch.x + point, self.bounds) - batch.x)

    def _shrunk(self, y: Tensor, boxed: Callable[[Tensor], Tensor]) -> Tensor:
        """The boxed y, shrunk by the least τ that brings it into the ball."""

        def shrunk(tau: Tensor) -> Tensor:
            return y.sign() * (y.abs() - per_sample(tau, y)).clamp(min=0)

        with torch.no_grad():
            high = y.abs().flatten(1).amax(1)
            low = torch.zeros_like(high)
            within = self.norm(boxed(y)) <= self.eps
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                over = self.norm(boxed(shrunk(middle))) > self.eps
                low, high = torch.where(over, middle, low), torch.where(over, high, middle)
            point = shrunk(high)
            free = (point != 0) & ((boxed(point) - point).abs() <= rounding(point))
            count = free.flatten(1).sum(1).clamp(min=1)
        # A step of Newton's method, of which only the derivative counts.
        norm = self.norm(boxed(shrunk(high)))
        return boxed(shrunk(torch.where(within, 0, high + (norm - norm.detach()) / count)))

    def noise(self, like: Tensor) -> Tensor:
        """Uniform in the ball of radius :attr:`start`."""
        size = math.prod(like.shape[1:])
        # Of d + 1 exponential numbers, d over the sum of all are uniform in the simplex.
        parts = torch.empty(len(like), size + 1, dtype=like.dtype, device=like.device)
        parts = parts.exponential_()
        signs = torch.randint(2, (len(like), size), device=like.device).to(like.dtype) * 2 - 1
        point = self.start * signs * parts[:, 1:] / parts.sum(1, keepdim=True)
        return point.view_as(like)

    def norm(self, delta: Tensor) -> Tensor:
        """‖δ‖₁."""
        return delta.abs().flatten(1).sum(1)

    def ascent(self, step: float) -> Update:
        """Along the signs of the largest slopes."""
        return SparseSign(step, self.bounds)


class SparseSign(Update):
    r"""A sparse step: ``y' = y + step · sign(g) / K`` in the K values of the largest slopes.

    The steepest ascent of a linear function in the L1 norm moves a single value; steps of a few are
    as good, and fewer are needed (SLIDE; Tramèr & Boneh, 2019). K is a hundredth of the values, and
    more if so many could not move so far within the bounds. Values that the bounds stop are left
    out: else the next steps would try to move the same ones.

    Args:
        step: η > 0, the length of the step in the L1 norm, in units of y.
        bounds: Of x + y, which is the context; None for none.

    Raises:
        BilevelError: If ``step`` is not positive and finite.

    Example:
        >>> slopes, data = torch.tensor([[3.0, -2.0, 1.0]]), torch.tensor([[1.0, 0.5, 0.5]])
        >>> SparseSign(0.1, (0.0, 1.0))(torch.zeros(1, 3), slopes, data, None)[0]
        tensor([[ 0.0000, -0.1000,  0.0000]])
    """

    differentiable = False

    def __init__(self, step: float, bounds: Bounds | None = PIXELS) -> None:
        super().__init__()
        self.step = positive("step", step)
        self.bounds = bounds
        reach = width(bounds)  # of a value; 0 where the bounds leave nothing to move
        self._least = max(math.ceil(self.step / reach), 1) if reach else 1

    def forward(self, y: Any, gradient: Any, context: Any, state: State) -> tuple[Tensor, State]:
        """Moves the values of the largest slopes that the bounds do not stop."""
        moved = clipped(context + self.step * gradient.sign(), self.bounds) - context
        slopes = torch.where(moved.abs() > rounding(context), gradient, 0).flatten(1)
        size = slopes.shape[1]
        count = min(max(round(_SHARE * size), self._least), size)
        largest = slopes.abs().topk(count, dim=1).indices
        signs = torch.zeros_like(slopes).scatter(1, largest, slopes.gather(1, largest).sign())
        return y + (self.step / count) * signs.view_as(y), state

    def extra_repr(self) -> str:
        """The length of a step, as ``repr`` shows it."""
        return f"step={self.step}"
