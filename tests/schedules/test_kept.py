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
    Parametric,
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


class Products(FollowerProblem):
    """The two of y in an order of their own."""

    sense = "max"

    def __init__(self, names: str, dtype: torch.dtype) -> None:
        self.names, self.dtype = names, dtype

    def init(self, batch):
        return {name: torch.zeros(2, dtype=self.dtype) for name in self.names}

    def objective(self, leader, y, batch):
        first, second = leader.model.weight
        return first @ y["a"] - second @ y["b"] - y["a"] @ y["a"]


def products_game(schedule: Schedule, names: str, dtype: torch.dtype) -> Bilevel:
    follower, start = Products(names, dtype), {"a": (1.0, 2.0), "b": (-3.0, 0.5)}
    model = nn.Linear(2, 2, bias=False, dtype=dtype)
    nn.init.eye_(model.weight)
    leader = ZeroSum(model, follower)
    solver = Parametric({name: torch.tensor(start[name], dtype=dtype) for name in names})
    opts = [torch.optim.SGD(player.parameters(), lr=0.2) for player in (leader, solver)]
    return Bilevel(
        leader, follower, solver, leader_opt=opts[0], solver_opt=opts[1], schedule=schedule
    )


@pytest.mark.parametrize("schedule", [Optimistic(), Lookahead(), Lookahead(Optimistic())], ids=repr)
@pytest.mark.parametrize(
    ("names", "dtype"), [("ba", torch.float32), ("ab", torch.float64)], ids=["order", "type"]
)
def test_a_state_goes_on_in_a_game_of_another_order_or_type(schedule, names, dtype) -> None:
    """By the names of the parameters, converted as by modules and optimizers of torch."""
    game = products_game(schedule, "ab", torch.float32)
    for _ in range(3):
        game.step(None)
    other = products_game(schedule, names, dtype)
    other.load_state_dict(game.state_dict())
    for _ in range(4):
        game.step(None)
        other.step(None)
    for name, parameter in game.trained_parameters().items():
        torch.testing.assert_close(other.trained_parameters()[name].float(), parameter)


@pytest.mark.parametrize("schedule", [Extragradient(), Optimistic(), Lookahead(steps=1)], ids=repr)
def test_a_game_in_which_nobody_trains_is_evaluated(schedule: Schedule) -> None:
    leader, follower, batch = image_game()
    leader.requires_grad_(False)
    losses = [
        Bilevel(leader, follower, pgm(0.1, 2), leader_opt=None, schedule=one).step(batch)["loss"]
        for one in (schedule, None)
    ]
    assert torch.equal(*losses)
