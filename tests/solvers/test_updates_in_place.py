"""Updates of one's own that work in place: the start, which may be a network's weights, stays."""

from __future__ import annotations

import pytest
import torch

from bilevel import Iterative, Penalty
from bilevel.robustness import Batch
from bilevel.updates import Gradient, Update
from tests.problems import Nearest, Weights


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_an_update_in_place_leaves_the_start_alone(needs_gradient: bool) -> None:
    """Which may be the weights of a network."""

    class InPlace(Update):
        def forward(self, y, gradient, context, state):
            return y.add_(1.0 if gradient is None else gradient), state

    class Held(Nearest):
        held = torch.zeros(2, 3)

        def init(self, batch):
            return self.held

    update = InPlace()
    update.needs_gradient = needs_gradient
    batch = Batch(torch.full((2, 3), 0.25), None)
    solution = Iterative(update, 3).solve(Held(), Weights(3), batch)
    assert torch.equal(Held.held, torch.zeros(2, 3))
    start = Iterative(update, 0).solve(Held(), Weights(3), batch).stats["objective_after"]
    assert torch.equal(solution.stats["objective_before"], start)
    assert not torch.equal(solution.stats["objective_after"], start)


def test_an_update_in_place_has_the_hypergradient_of_one_that_is_not() -> None:
    class InPlace(Update):
        def forward(self, y, gradient, context, state):
            return y.add_(0.5 * gradient), state

    leader, batch, slopes = Weights(3), Batch(torch.full((2, 3), 0.25), None), []
    for update in (InPlace(), Gradient(0.5)):
        solution = Penalty(100.0).solve(Iterative(update, 40), Nearest(), leader, batch)
        slopes.append(torch.autograd.grad(solution.value.square().sum(), leader.w)[0])
    assert slopes[0].any()
    torch.testing.assert_close(*slopes)
