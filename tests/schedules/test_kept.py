"""What schedules keep between steps belongs to the parameters it was taken from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bilevel import (
    Bilevel,
    Extragradient,
    FollowerProblem,
    Lookahead,
    Optimistic,
    Schedule,
    ZeroSum,
    pgm,
)
from tests.problems import image_game


@pytest.mark.parametrize("schedule", [Optimistic(), Lookahead(steps=2)], ids=repr)
def test_what_is_kept_of_one_parameter_is_not_anothers(schedule: Schedule) -> None:
    """Of two alike, trained in turn: each moves as if it were alone."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.full((2,), at)) for at in (1.0, 10.0))

    class Still(FollowerProblem):
        sense = "max"

        def init(self, batch):
            return torch.zeros(())

        def objective(self, leader, y, batch):
            return (leader.model.a.square() + leader.model.b).sum() - y.square()

    model, follower = Pair(), Still()
    game = Bilevel(
        ZeroSum(model, follower),
        follower,
        pgm(0.1, 0),
        leader_opt=torch.optim.SGD(model.parameters(), lr=0.25),
        schedule=schedule,
    )
    model.b.requires_grad_(False)
    game.step(None)  # of Lookahead's two: it comes back after two steps of the same parameters
    model.a.requires_grad_(False)
    model.b.requires_grad_(True)
    for _ in range(2):
        game.step(None)
    assert model.a.tolist() == [0.5, 0.5]
    expected = 9.75 if isinstance(schedule, Lookahead) else 9.5
    assert model.b.tolist() == [expected, expected]


@pytest.mark.parametrize("schedule", [Extragradient(), Optimistic(), Lookahead(steps=1)], ids=repr)
def test_a_game_in_which_nobody_trains_is_evaluated(schedule: Schedule) -> None:
    leader, follower, batch = image_game()
    leader.requires_grad_(False)
    losses = [
        Bilevel(leader, follower, pgm(0.1, 2), leader_opt=None, schedule=one).step(batch)["loss"]
        for one in (schedule, None)
    ]
    assert torch.equal(*losses)
