"""The checks check under ``python -O`` too, which drops assert statements."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bilevel.testing.requirement import require

CODE = """
import torch
from bilevel import FollowerProblem, Iterative, Unrolled, ZeroSum
from bilevel.testing import check_adjoint, check_follower, check_solver, check_update
from bilevel.updates import Gradient, Update

class Box(FollowerProblem):
    sense = "max"
    def init(self, batch): return torch.zeros_like(batch)
    def objective(self, leader, y, batch): return leader.model(batch + y).sum(1)
    def project(self, y, batch): return y.clamp(-1, 1)

class Outside(Box):
    def init(self, batch): return torch.full_like(batch, 2)

class Divided(Update):
    def forward(self, y, gradient, context, state): return y / gradient, None

class Intrusive(Iterative):
    def solve(self, follower, leader, batch):
        next(leader.parameters()).data.add_(1)
        return super().solve(follower, leader, batch)

follower, batch = Box(), torch.zeros(2, 3)
leader = ZeroSum(torch.nn.Linear(3, 1), follower)
solver = Intrusive(Gradient(0.1), 1)
for check, *parts in (
    (check_follower, Outside(), leader, batch),
    (check_update, Divided(), batch),
    (check_solver, solver, follower, leader, batch),
    (check_adjoint, Unrolled(), solver, follower, leader.requires_grad_(False), batch),
):
    try:
        check(*parts)
    except AssertionError as error:
        print(check.__name__, error)
"""


def test_without_assert_statements() -> None:
    ended = subprocess.run(
        [sys.executable, "-O", "-c", CODE],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    raised = [line.partition(" ")[0] for line in ended.stdout.splitlines()]
    assert raised == ["check_follower", "check_update", "check_solver", "check_adjoint"], ended


def test_a_requirement() -> None:
    require(True, "met")
    with pytest.raises(AssertionError, match=r"^violated$"):
        require(False, "violated")
