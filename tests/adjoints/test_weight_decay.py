"""The implicit adjoint where the answer is moved by weight decay, which the objective lacks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from bilevel import Bilevel, HypergradientWarning, Implicit, Iterative, Parametric
from bilevel.updates import Optimizer
from tests.valleys import F64, Numbers, Quadratic, error, hypergradient, valley

BATCH, V, DECAY = valley(5, 10.0), torch.ones(5, dtype=F64), 0.1
SGD = Optimizer(torch.optim.SGD, lr=0.1, weight_decay=DECAY)
TOLD = r"weight decay of y is no part of the objective: .* add the decay to the objective"


def slope(adjoint: Implicit, update: Optimizer) -> Any:
    return hypergradient(adjoint, Iterative(update, 2000), Quadratic(), Numbers(3), BATCH, V)[0]


def test_the_gradient_of_the_objective_alone_is_not_that_of_the_answer() -> None:
    """y* = (H + cI)⁻¹Bθ: as a fixed point of the same steps, or of SGD's, it is exact."""
    shifted = BATCH.h + DECAY * torch.eye(5, dtype=F64)
    expected = BATCH.b.T @ torch.linalg.solve(shifted, V)
    with pytest.warns(HypergradientWarning, match=TOLD):
        assert error(slope(Implicit(), SGD), expected) > 0.02
    adam = Optimizer(torch.optim.Adam, lr=0.05, weight_decay=DECAY)
    for update in (SGD, adam):
        assert error(slope(Implicit(fixed_point=SGD), update), expected) < 1e-5


def test_decoupled_decay_does_not_move_the_answer() -> None:
    """The steps of AdamW have one size: a gradient near 0 meets the decay."""
    update = Optimizer(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.9), weight_decay=DECAY)
    expected = BATCH.b.T @ torch.linalg.solve(BATCH.h, V)
    assert error(slope(Implicit(), update), expected) < 1e-5


class Own(torch.optim.SGD):
    """Whose decay may be decoupled."""


@pytest.mark.parametrize(
    ("kind", "adjoint", "told"),
    [
        (torch.optim.SGD, Implicit(), True),
        (torch.optim.Adam, Implicit(), True),
        (torch.optim.AdamW, Implicit(), False),
        (Own, Implicit(), False),
        (torch.optim.SGD, Implicit(fixed_point=SGD), False),
    ],
)
def test_of_the_optimizer_that_is_the_solver(kind: Any, adjoint: Implicit, told: bool) -> None:
    leader, solver = Numbers(3, V), Parametric(torch.zeros(5, dtype=F64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Bilevel(
            leader,
            Quadratic(),
            solver,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
            solver_opt=kind(solver.parameters(), lr=0.1, weight_decay=DECAY),
            adjoint=adjoint,
        )
    assert ["weight decay of y" in str(one.message) for one in caught] == [True] * told
