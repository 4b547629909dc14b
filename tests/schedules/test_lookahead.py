"""`Lookahead`: how far the players come back, and when."""

from __future__ import annotations

import torch

from bilevel import Lookahead, Simultaneous
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
