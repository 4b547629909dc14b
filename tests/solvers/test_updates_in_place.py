"""Updates of one's own that work in place: the start, which may be a network's weights, stays."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Forward,
    Implicit,
    Iterative,
    NonFiniteError,
    Penalty,
    Sampled,
    Unrolled,
)
from bilevel.robustness import Batch
from bilevel.updates import Gradient, Update
from tests.problems import Nearest, Weights


@pytest.mark.parametrize("warm_start", [True, False])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_an_update_in_place_leaves_the_start_alone(needs_gradient: bool, warm_start: bool) -> None:
    """Which may be the weights of a network."""

    class InPlace(Update):
        def forward(self, y, gradient, context, state):
            return y.add_(1.0 if gradient is None else gradient / 2), state

    class Held(Nearest):
        held = torch.zeros(2, 3)

        def init(self, batch):
            return self.held

    update = InPlace()
    update.needs_gradient = needs_gradient
    batch = Batch(torch.full((2, 3), 0.25), None)
    solver = Iterative(update, 3, warm_start=warm_start)
    solution = solver.solve(Held(), Weights(3), batch)
    assert torch.equal(Held.held, torch.zeros(2, 3))
    start, before = Held.held, Iterative(update, 0).solve(Held(), Weights(3), batch)
    if warm_start:
        start, before = solution.value, solution
        solution = solver.solve(Held(), Weights(3), batch)
    assert torch.equal(solution.start, start)
    assert torch.equal(solution.stats["objective_before"], before.stats["objective_after"])
    assert not torch.equal(*map(solution.stats.get, ("objective_before", "objective_after")))


def test_an_objective_that_is_a_part_of_y_is_told_as_it_was_at_the_start() -> None:
    class InPlace(Update):
        def forward(self, y, gradient, context, state):
            return y.add_(0.1 * gradient), state

    class First(Nearest):
        def objective(self, leader, y, batch):
            return y[:, 0]

    batch = Batch(torch.ones(2, 3), None)
    stats = Iterative(InPlace(), 3).solve(First(), Weights(3), batch).stats
    assert stats["objective_before"].item() == 0
    assert stats["objective_after"].item() == pytest.approx(-0.3)


@pytest.mark.parametrize(
    "adjoint_of",
    [lambda update: Penalty(100.0), lambda update: Implicit("gmres", fixed_point=update)],
)
def test_an_update_in_place_has_the_hypergradient_of_one_that_is_not(
    adjoint_of: Callable[[Update], Adjoint],
) -> None:
    class InPlace(Update):
        def forward(self, y, gradient, context, state):
            return y.add_(0.5 * gradient), state

    leader, batch, slopes = Weights(3), Batch(torch.full((2, 3), 0.25), None), []
    for update in (InPlace(), Gradient(0.5)):
        adjoint = adjoint_of(update)
        solution = adjoint.solve(Iterative(update, 40), Nearest(), leader, batch)
        slopes.append(torch.autograd.grad(solution.value.square().sum(), leader.w)[0])
    assert slopes[0].any()
    torch.testing.assert_close(*slopes)


class Heavy(Update):
    """Heavy-ball steps, whose momentum is kept as optimizers of torch keep it."""

    needs_context = False

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, y, gradient, context, state):
        m = torch.zeros_like(y) if state is None else state
        m = m.mul_(0.9).add_(gradient) if self.in_place else 0.9 * m + gradient
        return y + 0.1 * m.tanh(), m


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize(
    "adjoint",
    [
        Unrolled(),
        Unrolled(recompute=1),
        Unrolled(truncate=2, recompute=2),
        Forward(),
        Sampled(0.1, samples=2),
        Implicit(),
        Penalty(10.0),
    ],
)
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_state_in_place_is_as_good_as_another(adjoint: Adjoint, warm_start: bool) -> None:
    """Where the solver solves beside the training, too, and where a step has failed."""

    def trained(in_place: bool) -> torch.Tensor:
        torch.manual_seed(0)
        leader, follower = Weights(3), Nearest()
        solver = Iterative(Heavy(in_place), 3, warm_start=warm_start)
        opt = torch.optim.SGD(leader.parameters(), lr=0.1)
        game = Bilevel(leader, follower, solver, leader_opt=opt, adjoint=adjoint)
        for number in range(4):
            batch = Batch(torch.full((2, 3), 1.0 + number), None)
            copy.copy(solver).solve(follower, leader, batch)
            if number == 2:
                with pytest.raises(NonFiniteError):
                    game.step(Batch(batch.x * torch.nan, None))
            game.step(batch)
        return leader.w.detach()

    assert not torch.equal(trained(False), Weights(3).w)
    assert torch.equal(trained(True), trained(False))


def test_a_gradient_in_place_is_refused() -> None:
    """Its norm, a statistic, would be that of its sign."""

    class Signed(Update):
        def forward(self, y, gradient, context, state):
            return y + 0.1 * gradient.sign_(), state

    batch = Batch(torch.full((2, 3), 0.25), None)
    with pytest.raises(BilevelError, match=r"a gradient is changed in place.*: compute a new"):
        Iterative(Signed(), 3).solve(Nearest(), Weights(3), batch)
