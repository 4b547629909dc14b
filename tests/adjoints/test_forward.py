"""Forward mode: what it refuses. Its gradients are compared in test_unrolled.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel import BilevelError, Forward, Iterative
from bilevel.updates import Gradient
from tests.valleys import F64, Numbers, Quadratic, hypergradient, valley


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss])
def test_a_loss_without_forward_derivative(loss) -> None:
    class Fitting(Quadratic):
        def objective(self, leader: Numbers, y: Tensor, batch: Any) -> Tensor:
            return loss(y, batch.b @ leader.theta)

    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    with pytest.raises(BilevelError, match=r"forward derivative.*take Unrolled\(recompute=True\)"):
        hypergradient(Forward(), Iterative(Gradient(0.1), 2), Fitting(), leader, batch, v)


def test_forward_mode_for_many_numbers_or_a_solver_with_a_memory() -> None:
    solver = Iterative(Gradient(0.1), 2, warm_start=True)
    with pytest.raises(BilevelError, match=r"would solve 3 times.*take Unrolled\(recompute=True\)"):
        Forward(limit=2).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))
    with pytest.raises(BilevelError, match="give it warm_start=False"):
        Forward(limit=3).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))
