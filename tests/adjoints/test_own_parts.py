"""Adjoints, solvers and updates of one's own, as an adjoint meets them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from bilevel import (
    Bilevel,
    BilevelError,
    Implicit,
    Iterative,
    Parametric,
    Pullback,
    Sampled,
    Simultaneous,
    Solver,
    Unrolled,
)
from bilevel.updates import Gradient, Update
from tests.valleys import (
    F64,
    Numbers,
    Quadratic,
    Valley,
    error,
    exactly,
    hypergradient,
    optimum,
    pulled_back,
    valley,
)

ONES = torch.ones(3, dtype=F64)
ROUND = Valley(torch.eye(3, dtype=F64), torch.ones(3, 3, dtype=F64))


class More(Pullback):
    """Gives gradients of frozen parameters too."""

    def pull(self, problem, v):
        return {name: torch.ones_like(p) for name, p in problem.theta.items()}


def test_an_adjoint_may_give_more_than_is_wanted() -> None:
    leader = Numbers(3)
    leader.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    solver = Iterative(Gradient(0.1), 3)
    slope, _ = hypergradient(More(), solver, Quadratic(), leader, valley(3, 2.0), ONES)
    assert slope.tolist() == [1.0] * 3


class Remembers(Solver):
    """Has a memory of its own."""

    repeatable = False

    def answer(self, oracle):
        return optimum(oracle.leader, oracle.batch)


def test_a_solver_with_a_memory_of_its_own() -> None:
    batch = valley(3, 2.0)
    slope, _ = hypergradient(exactly(), Remembers(), Quadratic(), Numbers(3), batch, ONES)
    assert error(slope, pulled_back(batch, ONES)) < 1e-10


class Ahead(Parametric):
    """A step from the parameters, which depends on θ."""

    def answer(self, oracle):
        start = super().answer(oracle)
        return start + 0.1 * oracle.gradient(start)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_parameters_from_which_a_solver_goes_on() -> None:
    solver = Ahead(torch.zeros(3, dtype=F64))
    given = solver, Quadratic(), Numbers(3), ROUND, ONES
    assert hypergradient(Sampled(0.1, samples=200), *given)[0].any()


class Row(Solver):
    def answer(self, oracle):
        return oracle.init()[None] + oracle.leader.theta


def test_an_answer_of_another_rank() -> None:
    with pytest.raises(BilevelError, match="would be broadcast"):
        Unrolled().solve(Row(), Quadratic(), Numbers(3), ROUND)


def test_no_warning_where_no_gradient_is_taken() -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        Unrolled().solve(Iterative(Gradient(0.1), 2), Quadratic(), Numbers(3), valley(3, 2.0))


class Holds(Update):
    def __init__(self, *parts: Any) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, y, gradient, context, state):
        return y + gradient, state


class Following(Simultaneous):
    def __init__(self, *parts: Any) -> None:
        self.parts = parts


def test_a_game_copies_its_own_and_not_what_that_holds_of_the_game() -> None:
    leader, follower = Numbers(3, ONES), Quadratic()
    sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = Iterative(Gradient(0.1), 3)
    follower.network = nn.Linear(1, 1)
    networks = follower.network, follower.network.bias
    parts = leader, leader.theta, follower, solver, solver.update, sgd, *networks
    adjoint, schedule = Implicit(fixed_point=Holds(*parts)), Following(*parts)
    game = Bilevel(leader, follower, solver, leader_opt=sgd, adjoint=adjoint, schedule=schedule)
    assert game.adjoint is not adjoint
    assert game.schedule is not schedule
    for held in (game.adjoint.fixed_point.parts, game.schedule.parts):
        assert all(one is part for one, part in zip(held, parts, strict=True))
