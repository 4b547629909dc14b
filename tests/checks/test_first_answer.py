"""What a game checks of its first answer: that it lies in Y, and what Y may depend on."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Detached,
    Forward,
    Implicit,
    Iterative,
    NonFiniteError,
    Parametric,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.checks.first_answer import check_feasible
from bilevel.robustness import Batch
from bilevel.updates import Gradient
from tests.problems import LinearBox, Nearest, Saddle, Scalar, Weights, zero_sum_game


def test_a_projection_that_is_not_finite() -> None:
    class Sphere(LinearBox):
        def project(self, y, batch):
            return y / y.norm()

    with pytest.raises(NonFiniteError, match=r"Sphere\.project gives NaN .* divides by off 0"):
        check_feasible(Sphere(), torch.zeros(4), None)


def test_a_first_batch_that_is_not_finite_is_told_by_the_projection_that_reads_it() -> None:
    class Images(LinearBox):
        def project(self, y, batch):
            return (batch.x + y.clamp(-0.1, 0.1)).clamp(0, 1) - batch.x

    follower = Images()
    game = zero_sum_game(ZeroSum(torch.nn.Linear(3, 1), follower))
    for number in (torch.nan, torch.inf):
        batch = Batch(torch.tensor([[0.5, number, 0.5]]), torch.zeros(1))
        with pytest.raises(NonFiniteError, match=r"Images\.project gives .*start .* the batch"):
            game.step(batch)


def test_a_start_of_which_the_form_is_read_only() -> None:
    class Blank(Saddle):
        def init(self, batch):
            return torch.full((), torch.nan, dtype=torch.float64)

    leader, solver = ZeroSum(Scalar(1.0), Blank()), Parametric(torch.zeros(()).double())
    theta, phi = (torch.optim.SGD(player.parameters(), lr=0.1) for player in (leader, solver))
    game = Bilevel(leader, leader.follower, solver, leader_opt=theta, solver_opt=phi)
    assert game.step(None)["loss"] == 0


def test_an_answer_of_yes_and_no() -> None:
    class Subset(Nearest):
        def init(self, batch):
            return torch.zeros(3, dtype=torch.bool)

        def project(self, y, batch):
            return y & torch.tensor([True, True, False])

    check_feasible(Subset(), torch.tensor([True, False, False]), None)
    with pytest.raises(BilevelError, match="lies 1 outside Y"):
        check_feasible(Subset(), torch.tensor([True, False, True]), None)


def test_a_large_answer_is_in_y_but_for_rounding() -> None:
    class Sphere(Nearest):
        def project(self, y, batch):
            return 1e6 * y / y.norm(dim=1, keepdim=True)

    follower = Sphere()
    y = follower.project(-torch.rand(8, 5) * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]), None)
    assert not torch.equal(follower.project(y, None), y)
    check_feasible(follower, y, None)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_constraints_that_move_with_the_leader_are_no_constants() -> None:
    """Max over y ≤ 2 − x of (x − 1)² + y: the value is (x − 1)² + 2 − x, its slope 2x − 3."""

    class Interdicted(Saddle):
        def objective(self, leader, y, batch):
            return (leader.model.x - 1) ** 2 + y

        def project(self, y, batch):
            return y.minimum(2 - self.model.x)

    follower = Interdicted()
    follower.model = Scalar(0.5)
    follower.model.aside = torch.nn.Parameter(torch.zeros(()))  # on which Y does not depend
    leader = ZeroSum(follower.model, follower)
    for solver in (Iterative(Gradient(0.5), 9), Parametric(torch.zeros(()).double())):
        phi = torch.optim.SGD(solver.parameters(), lr=0.1) if [*solver.parameters()] else None
        with pytest.raises(BilevelError, match=r"Interdicted\.project depends on the leader's .*"):
            zero_sum_game(leader, solver=solver, solver_opt=phi).step(None)
    zero_sum_game(leader, adjoint=Unrolled()).step(None)
    assert leader.model.x.item() == pytest.approx(0.5 - 0.1 * (2 * 0.5 - 3))


def test_a_projection_by_numpy_has_constants() -> None:
    class Clipped(Saddle):
        def project(self, y, batch):
            return torch.as_tensor(y.numpy().clip(max=self.model.x.numpy()))

    follower = Clipped()
    follower.model = Scalar(0.5)
    zero_sum_game(ZeroSum(follower.model, follower)).step(None)


def test_a_start_that_keeps_what_it_draws() -> None:
    """The leader moves on the noise that the follower was solved with, in the first step too."""

    class Noisy(LinearBox):
        def init(self, batch):
            self.noise = torch.randn(())
            return super().init(batch)

        def objective(self, leader, y, batch):
            seen.append(self.noise.item())
            return super().objective(leader, y, batch)

    follower, seen = Noisy(), []
    leader = ZeroSum(torch.nn.Linear(2, 1), follower)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, Iterative(Gradient(0.1), 2), leader_opt=optimizer)
    game.step(Batch(torch.rand(3, 2), torch.zeros(3)))
    assert len(seen) == 3
    assert len(set(seen)) == 1


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
def test_an_answer_that_is_not_finite(number: float) -> None:
    with pytest.raises(NonFiniteError, match="the follower's first answer is not finite"):
        check_feasible(Nearest(), torch.tensor([0.0, number]), None)


def test_a_gradient_that_signs_do_not_show_to_be_none() -> None:
    class Cornered(LinearBox):
        """Its gain has no slope at the start: that of the square root of 0."""

        def objective(self, leader, y, batch):
            return super().objective(leader, y, batch) - y.square().sum(1).sqrt()

    follower = Cornered()
    leader = ZeroSum(torch.nn.Linear(2, 1), follower)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, pgm(0.1, 3), leader_opt=optimizer)
    with pytest.warns(UserWarning, match=r"Cornered\.objective has a gradient in y that is NaN"):
        game.step(Batch(torch.rand(3, 2), torch.zeros(3)))


def test_along_an_infinite_gradient_signs_do_move() -> None:
    class Rooted(LinearBox):
        def objective(self, leader, y, batch):
            return super().objective(leader, y, batch) + y.sum(1).sqrt()

    follower = Rooted()
    leader = ZeroSum(torch.nn.Linear(2, 1), follower)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)
    assert game.step(Batch(torch.rand(3, 2), torch.zeros(3)))["gradient_norm"].isinf()


def test_an_answer_of_zero_is_in_y_but_for_rounding() -> None:
    """Relative to the answer no rounding would be small enough."""

    class Half(Nearest):
        def project(self, y, batch):
            return y.clamp(min=0)

    check_feasible(Half(), torch.tensor([-5e-6]), None)
    with pytest.raises(BilevelError, match="lies 2e-05 outside Y"):
        check_feasible(Half(), torch.tensor([-2e-5]), None)


def test_constraints_of_a_third_party_beside_a_frozen_leader() -> None:
    class Bounded(Saddle):
        bound = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

        def project(self, y, batch):
            return y.minimum(self.bound)

    follower = Bounded()
    leader = ZeroSum(Scalar(0.5), follower).requires_grad_(False)
    assert zero_sum_game(leader).step(None)["loss"] == 0.5 * 1.0


@pytest.mark.parametrize("adjoint", [Detached(), Unrolled(), Implicit(), Forward()], ids=str)
def test_the_check_takes_no_start_of_its_own(adjoint: Adjoint) -> None:
    """Else a resumed run, whose first answer is checked again, would draw other numbers."""

    class Listed(Nearest):
        starts = itertools.count()

        def init(self, batch):
            return torch.full_like(batch.x, float(next(self.starts)))

    follower, leader, batch = Listed(), Weights(3), Batch(torch.ones(2, 3), torch.zeros(2))
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = Iterative(Gradient(1.0), 1)
    Bilevel(leader, follower, solver, leader_opt=optimizer, adjoint=adjoint).step(batch)
    solves = 1 + len(leader.w) if isinstance(adjoint, Forward) else 1
    assert next(follower.starts) == solves


def test_where_the_solve_takes_none_the_check_draws_from_no_generator_of_the_follower() -> None:
    class Drawn(Nearest):
        def __init__(self):
            self.generator = torch.Generator().manual_seed(0)
            self.numpys, self.pythons = np.random.default_rng(0), random.Random(0)

        def init(self, batch):
            size = self.numpys.random() + self.pythons.random()
            return size * torch.rand(batch.x.shape, generator=self.generator)

    leader = Weights(3)
    solver = Parametric(torch.zeros(2, 3)).requires_grad_(False)
    follower, batch = Drawn(), Batch(torch.ones(2, 3), torch.zeros(2))
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, solver, leader_opt=optimizer, adjoint=Detached())
    game.step(batch)
    fresh = Drawn()
    assert torch.equal(follower.generator.get_state(), fresh.generator.get_state())
    assert follower.numpys.random() == fresh.numpys.random()
    assert follower.pythons.random() == fresh.pythons.random()
