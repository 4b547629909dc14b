"""What the Square Attack proposes, seen by a classifier that nothing impresses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel import ZeroSum
from bilevel.robustness import Batch, Linf, Perturbation, Square
from bilevel.robustness.threats.losses import margin


class Unmoved(nn.Module):
    """The same logits for all images, which it notes: no proposal raises the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(x)
        return x.new_zeros(len(x), 3)


def proposals(
    queries: int, shape: tuple[int, ...], threat: type[Perturbation] = Linf, eps: float = 0.1
) -> Tensor:
    """The changes that are proposed to an even grey, ``(queries − 1, B, C, H, W)``."""
    model, batch = Unmoved(), Batch(torch.full(shape, 0.5), torch.zeros(shape[0]).long())
    follower = threat(eps, loss=margin)
    leader = ZeroSum(model, follower)
    solution = Square(queries).solve(follower, leader, batch, evaluate=False)
    assert solution.evaluations == len(model.seen) == queries
    start, *changed = (seen - batch.x for seen in model.seen)
    assert not start.any()
    assert not solution.value.any()
    return torch.stack(changed)
