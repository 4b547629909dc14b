"""The checks of a follower whose y has parts, and of a solver that has a state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel import FollowerProblem, Iterative, LeaderProblem
from bilevel.testing import check_follower, check_solver
from bilevel.updates import Gradient
from tests.problems import image_game


class Crossed(FollowerProblem):
    """A sample's value depends on its own part of one kind, and on another's of the other."""

    sense = "max"

    def init(self, batch: object) -> dict[str, Tensor]:
        return {"own": torch.zeros(4, 2), "other": torch.zeros(4, 2)}

    def objective(self, leader: LeaderProblem, y: dict[str, Tensor], batch: object) -> Tensor:
        return (y["own"] + y["other"].flip(0)).sum(1)


def test_samples_that_share_one_part_of_y_are_not_independent() -> None:
    leader, _, batch = image_game()
    with pytest.raises(AssertionError, match="depends on another sample's y"):
        check_follower(Crossed(), leader, batch)


def test_a_solver_may_go_on_from_what_its_state_dict_keeps() -> None:
    leader, follower, batch = image_game()
    check_solver(Iterative(Gradient(0.01), 2, warm_start=True), follower, leader, batch)
