"""Games with a pool, as each process of a job plays them."""

from __future__ import annotations

from pathlib import Path

import torch

from bilevel import (
    Bilevel,
    BilevelError,
    Detached,
    Extragradient,
    Implicit,
    Iterative,
    NonFiniteError,
    Parametric,
    Unrolled,
    ZeroSum,
    distributed,
    pgm,
)
from bilevel.robustness import Batch, Linf
from bilevel.updates import Gradient
from tests.problems import Apart, Pulled


class Heads(torch.nn.Module):
    """A head for dark images, one for light ones, and one for none."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(16, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        light = (x.mean(1) > 0.5).long()
        scores = x.new_zeros(len(x), 3)
        for number in light.unique():
            scores[light == number] = self.heads[number](x[light == number])
        return scores


def two_heads() -> torch.nn.Module:
    """A classifier trained on dark images in the first process and light ones in the second."""
    torch.manual_seed(0)
    follower = Linf(0.1)
    leader = ZeroSum(Heads(), follower)
    opt = torch.optim.SGD(leader.parameters(), lr=0.5, weight_decay=0.1)
    game = Bilevel(leader, follower, pgm(0.05, 2), leader_opt=opt)
    images, own = torch.rand(6, 1, 4, 4).sort(0).values, distributed.shard(6)
    if distributed.world_size() > 1:
        game.pool = distributed.Pool()
    for _ in range(3):
        game.step(Batch(images[own], torch.arange(6)[own] % 3))
    return leader


class Centre(Pulled):
    """min over a shared y of ‖y − θ‖² + ‖y − x‖², averaged over the samples x."""

    def objective(self, leader, y, batch):
        return super().objective(leader, y, batch) + (y - batch).square().sum(1).mean()


class Near(Apart):
    """A leader that wants to be where the answer is."""

    def loss(self, y, batch):
        return (self.theta - y).square().sum()


def share_one_y(folder: Path) -> None:
    """What each process is told of games in which the batch shares one y."""
    samples, told = torch.arange(12.0).view(4, 3), []
    for follower, solver, adjoint in (
        (Centre(), Iterative(Gradient(0.25), steps=40), Unrolled()),
        (Centre(), Parametric(torch.ones(3)), Implicit()),
        (Centre(), Parametric(torch.ones(3)), Detached()),
        (Pulled(), Iterative(Gradient(0.25), steps=40), Unrolled()),  # it reads no sample
    ):
        leader = Near()
        opt = torch.optim.SGD(leader.parameters(), lr=0.1)
        trained = isinstance(solver, Parametric)
        own = torch.optim.SGD(solver.parameters(), lr=0.1) if trained else None
        game = Bilevel(leader, follower, solver, leader_opt=opt, solver_opt=own, adjoint=adjoint)
        game.pool = distributed.Pool()
        try:
            game.step(samples[distributed.shard(4)])
            told.append("")
        except BilevelError as error:
            told.append(str(error))
    (folder / f"one y {distributed.rank()}").write_text("\n".join(told))


class Fit(Apart):
    """A leader whose loss is NaN where its samples are."""

    def loss(self, y, batch):
        return (self.theta - batch).square().mean()


def stumble(folder: Path) -> None:
    """What each process is told of steps of which one has samples that are not finite here only."""
    leader, told = Fit(), []
    opt = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver, schedule = Iterative(Gradient(0.25), steps=1), Extragradient()
    game = Bilevel(leader, Pulled(), solver, leader_opt=opt, adjoint=Detached(), schedule=schedule)
    game.pool = distributed.Pool()
    for number in range(3):
        samples = torch.arange(12.0).view(4, 3)[distributed.shard(4)]
        if number == 1 and distributed.is_main():
            samples = samples * torch.nan
        try:
            game.step(samples)
            told.append("moved")
        except NonFiniteError:
            told.append("not finite")
    torch.save((told, leader.state_dict()), folder / f"stumbled {distributed.rank()}.pt")
