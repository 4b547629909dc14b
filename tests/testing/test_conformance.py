"""The checks of problems and solvers name the requirement that is violated."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import count, cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from bilevel import FollowerProblem, Iterative, Oracle, Solution, Solver, ZeroSum, pgm
from bilevel.robustness import L2
from bilevel.testing import check_follower, check_solver, check_update
from bilevel.updates import Gradient
from tests.problems import LinearBox, image_game
from tests.testing.violations import PASSES, violation


def total(y: Tensor) -> Tensor:
    return y.flatten(1).sum(1)


def mean(_: Any, leader: Any, y: Tensor, batch: Any) -> Tensor:
    return y.mean()


def clipped(y: Tensor, norm: Tensor) -> Tensor:
    return y * (0.5 / norm.clamp(min=1e-9)).clamp(max=1)


SECOND = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, PASSES),
        ({"objective": lambda _, f, y, x: y.sum()}, PASSES),
        ({"init": lambda _, x: x.x + 1}, r"Odd\.init gives a point that project moves \(by 1"),
        ({"project": lambda _, y, x: y / 2}, r"Odd\.project moves what it has projected"),
        ({"project": lambda _, y, x: y.double()}, r"Odd\.project gives .*float64.* where y is"),
        ({"project": lambda _, y, x: {"y": y}}, r"Odd\.project returned a dict"),
        (
            {
                "project": lambda _, y, x: y * 0,
                "objective": lambda _, f, y, x: total(y.abs().sqrt()),
            },
            r"Odd\.objective has a gradient that is not finite",
        ),
        (
            {"objective": lambda _, f, y, x: total(y) - y.flatten(1).norm(dim=1).square().sqrt()},
            r"Odd\.objective has a gradient that is not finite where init starts",
        ),
        ({"objective": lambda _, f, y, x: total(y).flip(0).cumsum(0)}, "depends on another sample"),
        ({"objective": lambda _, f, y, x: total(y).cumsum(0)}, "depends on another sample"),
        ({"objective": lambda _, f, y, x: total(y) + total(y)[5] * SECOND}, "on another sample"),
        ({"project": lambda _, y, x: y * (y.abs() < 0.5)}, "distance .* where Y has one at .*near"),
        (
            {"project": lambda _, y, x: clipped(y, y.flatten(1).norm(dim=1)[:, None, None, None])},
            PASSES,
        ),
        (
            {"project": lambda _, y, x: clipped(y, y.norm())},
            r"Odd\.project moves a sample elsewhere",
        ),
        ({"project": lambda _, y, x: clipped(y, y.norm(dim=0))}, "where another's y differs"),
        ({"project": lambda _, y, x: clipped(y, y.norm()), "objective": mean}, PASSES),
        (
            {"objective": lambda _, f, y, x: total(y.square())},
            "the gradient 0 in y where init starts",
        ),
        ({"objective": lambda _, f, y, x: -total(y.square())}, PASSES),  # the start is the best
        ({"objective": lambda _, f, y, x: 0 * total(y)}, PASSES),  # no point is better
    ],
)
def test_a_follower(methods: dict[str, Any], message: str | None) -> None:
    leader, _, batch = image_game()
    with violation(message):
        check_follower(type("Odd", (LinearBox,), methods)(), leader, batch)


@pytest.mark.parametrize("first", range(4))
def test_a_point_that_is_better_by_noise_alone(first: int) -> None:
    noise = cycle([1.0, 0.0, 0.0, 1.0])
    for _ in range(first):
        next(noise)

    class Noisy(LinearBox):
        def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
            return 0 * total(y) + next(noise)

    leader, _, batch = image_game()
    check_follower(Noisy(), leader, batch)


def test_a_weight_whose_name_is_misspelt() -> None:
    class Misspelt(FollowerProblem):
        sense = "min"

        def init(self, batch: Any) -> dict[str, Tensor]:
            return {"layers.5.weigth": torch.zeros(3, 64), "layers.5.bias": torch.zeros(3)}

        def objective(self, leader: Any, y: dict[str, Tensor], batch: Any) -> Tensor:
            return functional_call(leader.model, y, (batch.x,)).square().mean()

    leader, _, batch = image_game()
    with pytest.raises(AssertionError, match=r"does not depend on layers\.5\.weigth: no step"):
        check_follower(Misspelt(), leader, batch)


def test_a_composition_of_projections_is_taken_for_one_if_told() -> None:
    leader, _, batch = image_game()
    corner = L2(0.3), ZeroSum(leader.model, L2(0.3)), batch._replace(x=batch.x.clamp(0, 0.05))
    with pytest.raises(AssertionError, match=r"L2\.project gives .* say nearest=False"):
        check_follower(*corner)
    check_follower(*corner, nearest=False)


class Odd(Solver):
    """Answers by a function, and does something to the leader."""

    def __init__(self, formula: Callable[..., Tensor], deed: Callable[[Any], Any]) -> None:
        super().__init__()
        self.formula, self.deed = formula, deed

    def answer(self, oracle: Oracle) -> Tensor:
        return self.formula(self, oracle)

    def solve(self, follower: Any, leader: Any, batch: Any, *, evaluate: bool = True) -> Solution:
        self.deed(leader.model.layers)
        return super().solve(follower, leader, batch, evaluate=evaluate)


def begins(solver: Odd, oracle: Oracle) -> Tensor:
    return oracle.init()


def draws(solver: Odd, oracle: Oracle) -> Tensor:
    return oracle.project(torch.randn_like(oracle.init()))


def remembers(solver: Odd, oracle: Oracle) -> Tensor:
    solver.last = oracle.project(getattr(solver, "last", oracle.init()) + 0.01)
    return solver.last


TURNS = count()


@pytest.mark.parametrize(
    ("formula", "deed", "message"),
    [
        (begins, lambda net: None, PASSES),
        (draws, lambda net: None, PASSES),
        (begins, lambda net: net[5].bias.data.add_(1), r"the leader's parameter .*\.5\.bias"),
        (begins, lambda net: net[5].bias.grad.add_(1), r"gradient of .*\.5\.bias"),
        (begins, lambda net: net.zero_grad(), r"gradient of .*\.0\.weight"),
        (begins, lambda net: setattr(net[1].bias, "grad", torch.ones(4)), "gradient of .*1.bias"),
        (begins, lambda net: net[5].requires_grad_(False), r"requires_grad of .*\.5\.weight"),
        (begins, lambda net: net[1].running_mean.add_(1), r"buffer .*\.1\.running_mean"),
        (begins, lambda net: net[1].eval(), r"training flag of .*\.1"),
        (lambda _, oracle: oracle.init() + 9, lambda net: None, r"outside Y \(by (8\.9|9)"),
        (lambda _, oracle: oracle.init() * math.nan, lambda net: None, "answer lies outside Y"),
        (lambda _, oracle: oracle.init() + 1e-9 * next(TURNS), lambda net: None, "the same seed"),
        (remembers, lambda net: None, "state dict lacks something that its answer needs"),
    ],
)
def test_a_solver(formula: Any, deed: Any, message: str | None) -> None:
    leader, follower, batch = image_game()
    leader.train()
    leader.loss(torch.zeros_like(batch.x), batch).backward()
    leader.model.layers[1].bias.grad = None
    with violation(message):
        check_solver(Odd(formula, deed), follower, leader, batch)


class Plain(LinearBox):
    """An objective that takes numbers of any type."""

    def __init__(self, constant: float = 0.0) -> None:
        super().__init__()
        self.constant = constant

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        return total(y) + self.constant


class Choice(FollowerProblem):
    """A position to choose in each sample: whole numbers, which have no gradient."""

    sense = "max"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(len(batch.x), 1, dtype=torch.int64)

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        pixels = batch.x.flatten(1)
        return pixels.gather(1, y % pixels.shape[1]).squeeze(1)

    def project(self, y: Tensor, batch: Any) -> Tensor:
        return y.clamp(0, batch.x[0].numel() - 1)


@pytest.mark.parametrize(("answer", "message"), [(5, PASSES), (10**6, "answer lies outside Y")])
def test_an_answer_of_whole_numbers(answer: int, message: str | None) -> None:
    leader, _, batch = image_game()
    solver = Odd(lambda _, oracle: oracle.init() + answer, lambda net: None)
    with violation(message):
        check_solver(solver, Choice(), leader, batch)


class Kept(FollowerProblem):
    """Which samples to keep, of which the last must go."""

    sense = "max"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(len(batch.x), dtype=torch.bool)

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        return batch.x.flatten(1).sum(1) * y

    def project(self, y: Tensor, batch: Any) -> Tensor:
        return y & (torch.arange(len(y)) < len(y) - 1)


@pytest.mark.parametrize(("last", "message"), [(False, PASSES), (True, "outside Y .by 1")])
def test_an_answer_of_yes_and_no(last: bool, message: str | None) -> None:
    def answer(net: Any, oracle: Any) -> Tensor:
        y = oracle.init()
        y[0], y[-1] = True, last
        return y

    leader, _, batch = image_game()
    with violation(message):
        check_solver(Odd(answer, lambda net: None), Kept(), leader, batch)


def test_an_answer_of_another_type() -> None:
    leader, _, batch = image_game()
    solver = Odd(lambda _, oracle: oracle.init().double(), lambda net: None)
    with pytest.raises(AssertionError, match=r"Odd gives .*float64.* where y is"):
        check_solver(solver, Plain(), leader, batch)


def test_statistics_that_are_not_finite() -> None:
    leader, _, batch = image_game()
    with pytest.raises(AssertionError, match="Iterative's objective_before is inf"):
        check_solver(Iterative(Gradient(0.1), 1), Plain(math.inf), leader, batch)


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


class WithNothing(FollowerProblem):
    """A part of its y has no elements, as a layer without outputs."""

    sense = "max"

    def init(self, batch: Any) -> dict[str, Tensor]:
        return {"all": torch.zeros(3), "none": torch.zeros(0)}

    def objective(self, leader: Any, y: dict[str, Tensor], batch: Any) -> Tensor:
        return y["all"].sum() + y["none"].sum()


def test_a_part_without_elements_is_where_it_should_be() -> None:
    leader, _, batch = image_game()
    check_follower(WithNothing(), leader, batch)


class Counting(Solver):
    """Its answer moves a little with each solve, and its state dict does not tell how far."""

    solves = 0

    def answer(self, oracle: Oracle) -> Tensor:
        self.solves += 1
        return oracle.project(oracle.init() + 1e-6 * self.solves)


def test_a_state_dict_that_lacks_little_lacks_something() -> None:
    leader, follower, batch = image_game()
    with pytest.raises(AssertionError, match="Counting's state dict lacks something"):
        check_solver(Counting(), follower, leader, batch)


def test_all_checks_leave_the_random_numbers_as_they_come() -> None:
    leader, follower, batch = image_game()
    for check in (
        lambda: check_follower(follower, leader, batch),
        lambda: check_update(Gradient(0.1), torch.zeros(2, 3)),
    ):
        state = torch.get_rng_state()
        check()
        assert torch.equal(torch.get_rng_state(), state)


class Ball(FollowerProblem):
    """Of radius ½ around zero, in numbers of which a sphere holds few."""

    sense = "max"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(16, 50, dtype=torch.bfloat16)

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        return y.sum(1)

    def project(self, y: Tensor, batch: Any) -> Tensor:
        return y * (0.5 / y.norm(dim=1, keepdim=True).clamp(min=1e-3)).clamp(max=1)


def test_a_projection_may_be_off_by_rounding() -> None:
    leader, _, batch = image_game()
    check_follower(Ball(), leader, batch)


def test_what_the_library_refuses_is_violated_too() -> None:
    class Named(Counting):
        def answer(self, oracle: Oracle) -> Any:
            return {"y": oracle.init()}

    leader, follower, batch = image_game()
    with pytest.raises(AssertionError, match="Named"):
        check_solver(Named(), follower, leader, batch)
