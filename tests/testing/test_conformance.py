"""The checks that a subclasser runs: they find what is wrong, and leave no trace."""

from __future__ import annotations

import copy

import torch

from bilevel import (
    pgm,
)
from bilevel.testing import check_follower, check_solver
from tests.problems import image_game


def test_a_follower_is_checked_while_the_leader_is_frozen() -> None:
    leader, follower, batch = image_game()
    before = copy.deepcopy(leader.state_dict())
    check_follower(follower, leader.train(), batch)
    assert all(torch.equal(value, before[name]) for name, value in leader.state_dict().items())


def test_a_check_leaves_the_random_numbers_as_they_come() -> None:
    leader, follower, batch = image_game()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_solver(pgm(0.1, 2), follower, leader, batch)
    assert torch.equal(torch.rand(3), expected)
