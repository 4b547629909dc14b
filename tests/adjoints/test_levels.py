"""Three levels: a solve by `Unrolled` inside the objective of another follower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import Adjoint, FollowerProblem, Implicit, Iterative, Unrolled
from bilevel.updates import Gradient
from tests.valleys import F64, Numbers, hypergradient


class Inner(FollowerProblem):
    """min over z of ½‖z − 2y‖², where y is the batch: z* = 2y, whatever the leader is."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2, dtype=F64)

    def objective(self, leader: Numbers, z: Tensor, batch: Tensor) -> Tensor:
        return (z - 2 * batch).square().sum() / 2


class Middle(FollowerProblem):
    """min over y of ½‖z*(y) − θ‖² + ½‖y‖², at y* = 0.4 θ."""

    sense = "min"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(2, dtype=F64)

    def objective(self, leader: Numbers, y: Tensor, batch: Any) -> Tensor:
        z = Unrolled().solve(Iterative(Gradient(1.0), 2), Inner(), leader, y).value
        return ((z - leader.theta).square().sum() + y.square().sum()) / 2


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=repr)
def test_an_inner_follower_that_reads_the_middle_one_only(adjoint: Adjoint) -> None:
    """Its independence of the leader is no reason for a warning, which would be an error here."""
    v = torch.tensor([1.0, -2.0], dtype=F64)
    slope, _ = hypergradient(adjoint, Iterative(Gradient(0.2), 3), Middle(), Numbers(2), None, v)
    torch.testing.assert_close(slope, 0.4 * v)
