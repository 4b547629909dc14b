"""Constraints that change between steps: the projection is no part of a schedule's displacement."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel import Alternating, Extragradient, Lookahead, Optimistic, Schedule, Simultaneous
from bilevel.games import Bilinear, begin, position


class Boxed(Bilinear):
    """xᵀ A y in a box, whose size a user changes on the way."""

    radius = 0.5

    def onto(self, z: Tensor) -> Tensor:
        return z.clamp(-self.radius, self.radius)


@pytest.mark.parametrize(
    "schedule",
    [Simultaneous(), Alternating(), Extragradient(), Optimistic(), Lookahead(steps=2)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_players_outside_of_a_smaller_box_begin_inside(schedule: Schedule) -> None:
    matrix = torch.tensor([[1.0, -0.2], [0.3, 0.5]], dtype=torch.float64)
    game, twin = (begin(Boxed(matrix), 0.4, 0.45, lr=0.1, schedule=schedule) for _ in range(2))
    for radius in (0.5, 0.5, 0.1, 0.1, 0.05):
        for one in (game, twin):
            one.follower.radius = radius
        twin.project(None)
        for one in (game, twin):
            one.step(None)
        assert torch.equal(position(game), position(twin))
        assert position(game).abs().max() <= radius
