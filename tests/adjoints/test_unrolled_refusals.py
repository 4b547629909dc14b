"""What cannot be unrolled, and is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel import (
    Bilevel,
    BilevelError,
    Forward,
    HypergradientWarning,
    Iterative,
    Parametric,
    Unrolled,
    pgm,
)
from bilevel.solvers import Solver
from bilevel.tree import leaves
from bilevel.updates import Momentum, SignGradient
from tests.problems import image_game
from tests.valleys import Known, Numbers, Quadratic, valley


@pytest.mark.parametrize("kind", [Unrolled, Forward])
@pytest.mark.parametrize("update", [SignGradient(0.1), Momentum(SignGradient(0.1), 0.9)])
def test_a_step_that_jumps(kind, update) -> None:
    leader, follower, batch = image_game()
    with pytest.raises(BilevelError, match=r"in jumps.*take updates\.Gradient.*Implicit\(\)"):
        kind().solve(Iterative(update, 2), follower, leader, batch)
    with pytest.raises(BilevelError, match="in jumps"):
        kind().solve(pgm(0.1, 2), follower, leader, batch)


@pytest.mark.parametrize("adjoint", [Unrolled(), Forward()])
def test_an_answer_that_is_not_computed_from_theta(adjoint) -> None:
    """A game says so when it is built."""
    parts, told = (
        (Parametric(torch.zeros(3)), Quadratic(), Numbers(3)),
        r"moved by an .*Implicit\(\)",
    )
    with pytest.raises(BilevelError, match=told):
        adjoint.solve(*parts, valley(3, 2.0))
    solver, follower, leader = parts
    with pytest.raises(BilevelError, match=told):
        Bilevel(
            leader,
            follower,
            solver,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
            solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
            adjoint=adjoint,
        )


@pytest.mark.parametrize("settings", [{"truncate": 0}, {"truncate": 2.5}, {"recompute": -1}])
def test_no_number_of_steps(settings) -> None:
    with pytest.raises(BilevelError, match=r"must be a whole number of at least 1; give 1, 2"):
        Unrolled(**settings)


def test_a_solver_that_ignores_the_leader() -> None:
    solver = Known(lambda leader, batch: batch.b[:, 0])
    with pytest.warns(HypergradientWarning, match="ignores the leader's theta"):
        value = Unrolled().solve(solver, Quadratic(), Numbers(3), valley(3, 2.0)).value
    assert not leaves(value)[0].requires_grad


@pytest.mark.parametrize(
    ("outside", "error", "message"),
    [
        (lambda y: torch.from_numpy(y.numpy()), BilevelError, r"computes in numpy.*take Implicit"),
        (Tensor.detach, HypergradientWarning, r"outside of autograd .* take Implicit\(\)"),
    ],
    ids=["numpy", "detach"],
)
def test_a_solver_outside_of_autograd(outside, error, message) -> None:
    class Outside(Solver):
        def answer(self, oracle):
            y = oracle.init()
            for _ in range(3):
                y = y + 0.1 * outside(oracle.gradient(y))
            return y

    batch = valley(4, 5.0)
    check = pytest.warns if error is HypergradientWarning else pytest.raises
    with check(error, match=message):
        Unrolled().solve(Outside(), Quadratic(), Numbers(3), batch)
