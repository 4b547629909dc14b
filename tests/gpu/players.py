"""Games and networks that are small enough to be played on a GPU and on a processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bilevel import Bilevel, FollowerProblem, Iterative, LeaderProblem, ZeroSum
from bilevel.alias import SCHEDULES
from bilevel.robustness import Attacker, Batch, Linf, make_solver
from bilevel.updates import Gradient


class Ridge(FollowerProblem):
    """min over w of ‖X w − t‖² / n + ∑ exp(θ_i) w_i²."""

    sense = "min"

    def init(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.zeros_like(batch["x"][0])

    def objective(self, leader: Decay, y: Tensor, batch: dict[str, Tensor]) -> Tensor:
        misfit = (batch["x"] @ y - batch["t"]).square().mean()
        return misfit + (leader.decay.exp() * y.square()).sum()


class Decay(LeaderProblem):
    """The logarithms θ of the weight decays, chosen on other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64))

    def loss(self, y: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (batch["other x"] @ y - batch["other t"]).square().mean()


def rows(device: torch.device) -> dict[str, Tensor]:
    """The same numbers on any device."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"x": (20, 3), "t": (20,), "other x": (10, 3), "other t": (10,)}
    return {
        name: torch.randn(size, generator=draw, dtype=torch.float64).to(device)
        for name, size in sizes.items()
    }


def ridge_game(device: torch.device, *, fused: bool = False, **parts: Any) -> Bilevel:
    leader = Decay().to(device)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.5, momentum=0.5, fused=fused)
    solver = Iterative(Gradient(0.1), 300)
    return Bilevel(leader, Ridge(), solver, leader_opt=optimizer, **parts)


def image_game(
    device: torch.device,
    method: str = "two-step-l2l",
    schedule: str = "simultaneous",
    *,
    dropout: float = 0.0,
    start: float = 0.0,
) -> Bilevel:
    """Everything that a graph might forget; random numbers where they are asked for."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten()
    model, follower = nn.Sequential(*layers, nn.Linear(144, 10)), Linf(0.1, start=start)
    attacker = Attacker("two-layer", width=4, gradient_skip=1.0)
    solver = make_solver(method, eps=0.1, channels=1, attacker=attacker)
    for network in (model, solver):
        network.to(device)
    leader, phi = ZeroSum(model, follower), list(solver.parameters())
    # Rates that float32 holds exactly, as which a graph reads them.
    alpha = torch.optim.SGD(leader.parameters(), lr=2**-4, momentum=0.9, fused=True)
    beta = torch.optim.Adam(phi, lr=2**-7, fused=True) if phi else None
    order = SCHEDULES[schedule]()
    return Bilevel(leader, follower, solver, leader_opt=alpha, solver_opt=beta, schedule=order)


def image_batch(device: torch.device, size: int = 4, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(size, 1, 8, 8, generator=draw)
    y = torch.randint(10, (size,), generator=draw)
    return Batch(x.to(device), y.to(device))
