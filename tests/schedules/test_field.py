"""Products with the Jacobian of a game's field."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jacrev

from bilevel import (
    Bilevel,
)
from bilevel.schedules import Corrected, Field
from tests.schedules.general import F64, general_game, loss, objective


class Spy(Corrected):
    """Simultaneous steps, of which the products with v are kept."""

    def __init__(self, v: Tensor) -> None:
        self.v, self.found = v, []

    def correct(self, field: Field, game: Bilevel, metrics: dict[str, Tensor]) -> Tensor:
        v = self.v
        self.found += [field.value, field.cross, field.product(v), field.transposed(v)]
        self.found += [field.across(v), field.across_transposed(v)]
        self.found += [field.to_leader(v[3:]), field.to_follower(v[:3])]
        return field.value


def test_products_of_a_field() -> None:
    """Those between the players, and what each controls of the other's loss."""
    v, batch = torch.randn(5, dtype=F64), torch.randn(3, 2, dtype=F64)
    game = general_game(Spy(v))
    w = torch.cat([game.leader.x, game.solver.y]).detach()
    game.step(batch)

    def both(w: Tensor) -> tuple[Tensor, Tensor]:
        slopes = (grad(f, argnums=(0, 1))(w[:3], w[3:], batch) for f in (loss, objective))
        (a, b), (c, d) = slopes
        return torch.cat([a, d]), torch.cat([c, b])

    value, cross = both(w)
    j = jacrev(lambda w: both(w)[0])(w)
    across = (1 - torch.block_diag(torch.ones(3, 3), torch.ones(2, 2))) * j
    expected = [value, cross, j @ v, j.T @ v, across @ v, across.T @ v]
    expected += [j[:3, 3:] @ v[3:], j[3:, :3] @ v[:3]]
    torch.testing.assert_close(game.schedule.found, expected)
