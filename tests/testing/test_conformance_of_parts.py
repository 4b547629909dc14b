"""The checks of a follower whose y has parts, and of a solver that has a state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bilevel import FollowerProblem, Iterative, LeaderProblem, Solver
from bilevel.solvers import Oracle
from bilevel.testing import check_follower, check_solver
from bilevel.updates import Gradient
from tests.problems import image_game
from tests.testing.violations import PASSES, violation


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


class Weighed(FollowerProblem):
    """Samples with weights that depend on the others, held constant."""

    sense = "max"

    def __init__(self, weights: Callable[[Tensor], Tensor]) -> None:
        self.weights = weights

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: LeaderProblem, y: Tensor, batch: Tensor) -> Tensor:
        values = (batch + y).square().sum(1) + 1e-3 * torch.randn(len(y))
        return self.weights(values.detach()) * values


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones_like, PASSES),
        (torch.sigmoid, PASSES),
        (lambda values: values.softmax(0), "objective of a sample depends on another"),
        (lambda values: 1 / values.mean(), "objective of a sample depends on another"),
        (lambda values: values.argsort().argsort(), "objective of a sample depends on another"),
    ],
)
def test_samples_that_are_weighed_by_each_other_are_not_independent(
    weights: Callable[[Tensor], Tensor], message: str | None
) -> None:
    with violation(message):
        check_follower(Weighed(weights), image_game()[0], torch.randn(6, 12))


class Pixels(FollowerProblem):
    """A perturbation of pixels from 0 to 255: one of norm 1 does not leave Y."""

    sense = "max"

    def __init__(self, project: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.onto = project

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: LeaderProblem, y: Tensor, batch: Tensor) -> Tensor:
        return (batch * y).sum(1)

    def project(self, y: Tensor, batch: Tensor) -> Tensor:
        norm = y.norm(dim=1, keepdim=True)
        return torch.where(norm > 100, self.onto(y, norm), y)


@pytest.mark.parametrize(
    ("project", "message"),
    [
        (lambda y, norm: 100 * y / norm, PASSES),
        (lambda y, norm: y / norm, "where Y has one at .*: it must give the nearest one"),
        (lambda y, norm: 0.9 * y, "project moves what it has projected"),
        (lambda y, norm: 100 * y / norm.max(), "project moves a sample elsewhere where another's"),
    ],
)
def test_a_set_that_is_large_is_left_too(
    project: Callable[[Tensor, Tensor], Tensor], message: str | None
) -> None:
    with violation(message):
        check_follower(Pixels(project), image_game()[0], torch.randn(6, 12))


def test_points_of_a_very_large_set_may_move_by_their_rounding() -> None:
    class Ball(Pixels):
        def project(self, y: Tensor, batch: Tensor) -> Tensor:
            return y * (3000 / y.norm(dim=1, keepdim=True)).clamp(max=1)

    check_follower(Ball(torch.div), image_game()[0], torch.randn(6, 12))


def test_a_solver_may_go_on_from_what_its_state_dict_keeps() -> None:
    leader, follower, batch = image_game()
    check_solver(Iterative(Gradient(0.01), 2, warm_start=True), follower, leader, batch)


class Remembering(Solver):
    """It starts from its last answer, in a buffer that it has after a solve only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", None)

    def answer(self, oracle: Oracle) -> Tensor:
        self.last = oracle.project((oracle.init() if self.last is None else self.last) + 0.01)
        return self.last


def test_a_state_dict_that_cannot_be_loaded_before_a_solve() -> None:
    leader, follower, batch = image_game()
    with pytest.raises(AssertionError, match="Remembering that has not solved cannot load"):
        check_solver(Remembering(), follower, leader, batch)
