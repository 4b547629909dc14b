"""A linear classifier of two classes, and images away from the bounds of [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel.robustness import Batch


class LinearClassifier(nn.Module):
    """Logits (0, ⟨w, x − ½⟩): an attack of radius ε moves the second by at most ε‖w‖₁."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        score = (self.w * (x - 0.5)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)

    def distance(self, batch: Batch) -> Tensor:
        """How far each image may move in L∞ before it is wrong; negative where it is."""
        score = self(batch.x)[:, 1].detach() * (2 * batch.y - 1)
        return score / self.w.detach().abs().sum()

    def worst(self, batch: Batch) -> Tensor:
        """The direction of the corner at which each image is most wrong."""
        return (1 - 2 * batch.y).view(-1, 1, 1, 1) * self.w.detach().sign()


def greys(count: int) -> Batch:
    """4×4 images between ¼ and ¾ of either class."""
    return Batch(0.25 + 0.5 * torch.rand(count, 1, 4, 4), torch.randint(2, (count,)))
