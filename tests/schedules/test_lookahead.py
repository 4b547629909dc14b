"""`Lookahead`: how far the players come back, and when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel import (
    Alternating,
    BilevelError,
    Lookahead,
    Optimistic,
    Schedule,
    Simultaneous,
    games,
)
from tests.schedules.critics import combine, critic_game, state


def test_lookahead_comes_back_part_of_the_way() -> None:
    game = critic_game(Lookahead(steps=3, alpha=0.25), torch.optim.SGD, lr=0.1)
    twin = critic_game(Simultaneous(), torch.optim.SGD, lr=0.1)
    batch = torch.randn(8, 4)
    for _ in range(2):
        slow = state(twin)
        for _ in range(3):
            game.step(batch)
            twin.step(batch)
        w = combine((0.75, slow), (0.25, state(twin)))
        torch.testing.assert_close(state(game), w)
        for player, value in zip(twin.trained_parameters().values(), w, strict=True):
            player.copy_(value)


def test_lookahead_with_fewer_steps_than_were_taken_comes_back_at_once() -> None:
    game = critic_game(Lookahead(steps=6), torch.optim.SGD, lr=0.1)
    batch = torch.randn(8, 4)
    slow = state(game)
    for taken in range(5):
        if taken == 4:
            game.schedule.steps = 3
        game.step(batch)
    twin = critic_game(Simultaneous(), torch.optim.SGD, lr=0.1)
    for _ in range(5):
        twin.step(batch)
    torch.testing.assert_close(state(game), combine((0.5, slow), (0.5, state(twin))))


def test_a_state_of_another_inner_schedule_is_refused_in_both_directions() -> None:
    inners = Simultaneous(), Optimistic()
    one, other = (critic_game(Lookahead(inner), torch.optim.SGD, lr=0.1) for inner in inners)
    for game in (one, other):
        game.step(torch.randn(8, 4))
    for source, target in ((one, other), (other, one)):
        with pytest.raises(BilevelError, match="the inner schedule has state"):
            target.load_state_dict(source.state_dict())


class Boxed(games.Game):
    """f(x, y) = xy, each player in [0, 1]."""

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        return x @ y

    def onto(self, z: Tensor) -> Tensor:
        return z.clamp(0, 1)


@pytest.mark.parametrize("inner", [Simultaneous(), Alternating()], ids=repr)
def test_lookahead_comes_back_from_a_point_of_the_set(inner: Schedule) -> None:
    schedule = Lookahead(inner, steps=2, alpha=0.5)
    game = Boxed((torch.zeros(1), torch.zeros(1)))
    path = games.trajectory(games.begin(game, 0.5, 0.9, lr=1.0, schedule=schedule), 8)
    x, y = slow = 0.5, 0.9
    for number, seen in enumerate(path[1:], 1):
        moved = min(max(x - y, 0.0), 1.0)
        y = min(y + (x if isinstance(inner, Simultaneous) else moved), 1.0)
        x = moved
        if number % 2 == 0:
            x, y = slow = (slow[0] + x) / 2, (slow[1] + y) / 2
        torch.testing.assert_close(seen, torch.tensor([x, y]))
