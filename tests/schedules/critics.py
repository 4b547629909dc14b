"""A small game of two networks, and arithmetic with its players."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel import Bilevel, FollowerProblem, Parametric, Schedule, ZeroSum
from bilevel.robustness import Batch


class Discriminator(FollowerProblem):
    """A follower whose y is a dict of tensors: the weights of a linear critic."""

    sense = "max"

    def init(self, batch: Batch) -> dict[str, Tensor]:
        return {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}

    def objective(self, leader: ZeroSum, y: dict[str, Tensor], batch: Batch) -> Tensor:
        scores = torch.tanh(leader.model(batch)) @ y["weight"].T + y["bias"]
        return (scores.sin().sum(1) - y["weight"].square().sum() / 4).mean()


def critic_game(schedule: Schedule, optimizer: type[torch.optim.Optimizer], **options) -> Bilevel:
    torch.manual_seed(0)
    follower = Discriminator()
    leader = ZeroSum(nn.Linear(4, 3), follower)
    solver = Parametric({"weight": torch.randn(2, 3), "bias": torch.randn(2)})
    return Bilevel(
        leader,
        follower,
        solver,
        leader_opt=optimizer(leader.parameters(), **options),
        solver_opt=optimizer(solver.parameters(), **options),
        schedule=schedule,
    )


def state(game: Bilevel) -> list[Tensor]:
    return [player.clone() for player in game.trained_parameters().values()]


def combine(*terms: tuple[float, list[Tensor]]) -> list[Tensor]:
    rows = zip(*([scale * tensor for tensor in tensors] for scale, tensors in terms), strict=True)
    return [torch.stack(row).sum(0) for row in rows]
