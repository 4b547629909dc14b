"""Problems with answers in closed form, and networks on which the library's promises are tested."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bilevel import Bilevel, FollowerProblem, Iterative, LeaderProblem, ZeroSum
from bilevel.robustness import Batch, Linf
from bilevel.updates import Gradient


class LinearBox(FollowerProblem):
    """max over ‖y_i‖∞ ≤ ε of ⟨w, x_i + y_i⟩, attained at y_i = ε sign(w) whatever x_i is."""

    sense = "max"

    def __init__(self, eps: float = 0.5) -> None:
        self.eps = eps

    def init(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.x)

    def context(self, y: Tensor, batch: Batch) -> Tensor:
        return batch.x + y

    def objective(self, leader: ZeroSum, y: Tensor, batch: Batch) -> Tensor:
        return leader.model(batch.x + y).flatten(1).sum(1)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y.clamp(-self.eps, self.eps)


class Nearest(FollowerProblem):
    """min over y_i of ½‖y_i − w ∘ x_i‖², attained at w ∘ x_i."""

    sense = "min"

    def init(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.x)

    def context(self, y: Tensor, batch: Batch) -> Tensor:
        return batch.x

    def objective(self, leader: Weights, y: Tensor, batch: Batch) -> Tensor:
        return (y - leader.w * batch.x).square().flatten(1).sum(1) / 2


class Weights(LeaderProblem):
    """A leader that is not zero-sum with :class:`Nearest`: it wants the answers to be large."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return (self.w**2).sum() / 2 - y.mean()


class Saddle(FollowerProblem):
    """max over a scalar y of x·y: the bilinear game of the paper's Appendix A."""

    sense = "max"

    def init(self, batch: object) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    def objective(self, leader: ZeroSum, y: Tensor, batch: object) -> Tensor:
        return leader.model.x * y


class Scalar(nn.Module):
    """The leader's x of the bilinear game."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(x, dtype=torch.float64))


class BatchNormNet(nn.Module):
    """A small classifier with all that a solve could disturb: BatchNorm, dropout, a buffer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(4 * 16, 3),
        )
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


def images(count: int = 6, *, dtype: torch.dtype = torch.float32) -> Batch:
    """Random 4×4 images of three classes."""
    return Batch(torch.rand(count, 1, 4, 4, dtype=dtype), torch.arange(count) % 3)


def image_game(
    eps: float = 0.1, *, dtype: torch.dtype = torch.float32
) -> tuple[ZeroSum, Linf, Batch]:
    """A classifier in training mode, its threat model and a batch."""
    follower = Linf(eps)
    return ZeroSum(BatchNormNet().to(dtype), follower), follower, images(dtype=dtype)


class Apart(LeaderProblem):
    """Its loss depends on θ through y only."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3))

    def loss(self, y, batch):
        return y.square().sum()


class Pulled(FollowerProblem):
    """min over a shared y of ‖y − θ‖², attained at θ."""

    sense = "min"

    def init(self, batch):
        return torch.zeros(3)

    def objective(self, leader, y, batch):
        return (y - leader.theta).square().sum()


def zero_sum_game(leader: ZeroSum, **parts: Any) -> Bilevel:
    """A game against the leader's follower, by nine gradient steps unless told otherwise."""
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = parts.pop("solver", Iterative(Gradient(0.5), 9))
    return Bilevel(leader, leader.follower, solver, leader_opt=optimizer, **parts)
