"""`testing.check_adjoint`: passes what is right, and names the parameter of what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    BilevelError,
    Detached,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Penalty,
    Unrolled,
    testing,
)
from bilevel.updates import Gradient, Optimizer, Update
from tests.valleys import F64


class Shift(LeaderProblem):
    """Two parameters, of which the loss reads one on its own too."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(2, 3, dtype=F64))
        self.bias = nn.Parameter(torch.randn(2, dtype=F64))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return y.square().sum() / 2 + self.bias.sum()


class Soft(FollowerProblem):
    """min over y of Σ softplus(y) + ½‖y − Ab − c‖²."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2, dtype=F64)

    def objective(self, leader: Shift, y: Tensor, batch: Tensor) -> Tensor:
        target = leader.matrix @ batch + leader.bias
        return F.softplus(y).sum() + (y - target).square().sum() / 2


class Rounded(Soft):
    """The same, with its target rounded to float32 as by networks that normalise in float32."""

    def objective(self, leader: Shift, y: Tensor, batch: Tensor) -> Tensor:
        target = (leader.matrix @ batch + leader.bias).float().double()
        return F.softplus(y).sum() + (y - target).square().sum() / 2


class Mixed(LeaderProblem):
    """One parameter has a gradient 10⁷ times that of the other, which acts through y* alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0, dtype=F64))
        self.decay = nn.Parameter(torch.tensor(1.0, dtype=F64))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return 1e4 * (1 + self.rate**2) + 1e-3 * y.sum()


class Followed(FollowerProblem):
    """min over y of (y − decay)², where the rate plays no part."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(1, dtype=F64)

    def objective(self, leader: Mixed, y: Tensor, batch: Tensor) -> Tensor:
        return (y - leader.decay - 0 * leader.rate).square().sum()


def test_a_small_gradient_is_checked_beside_a_large_one() -> None:
    solver, parts = Iterative(Gradient(0.5), 1), (Followed(), Mixed(), torch.empty(0))
    testing.check_adjoint(Unrolled(), solver, *parts)
    with pytest.raises(AssertionError, match=r"the gradient of decay is off by 0\.001"):
        testing.check_adjoint(Detached(), solver, *parts)


def test_a_small_gradient_is_not_off_by_the_rounding_of_a_large_loss() -> None:
    class Offset(Mixed):
        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            return 1e8 + super().loss(y, batch)

    solver = Iterative(Gradient(0.5), 1)
    testing.check_adjoint(Unrolled(), solver, Followed(), Offset(), torch.empty(0))


class Both(LeaderProblem):
    """One parameter, of which the last element acts through y* alone."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.ones(2, dtype=F64))

    @property
    def rate(self) -> Tensor:
        return self.both[0]

    @property
    def decay(self) -> Tensor:
        return self.both[1]

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return self.rate + y.sum()


def test_every_element_of_a_parameter_is_checked() -> None:
    solver, parts = Iterative(Gradient(0.5), 1), (Followed(), Both(), torch.empty(0))
    testing.check_adjoint(Unrolled(), solver, *parts)
    with pytest.raises(AssertionError, match="the gradient of both is off by 1 "):
        testing.check_adjoint(Detached(), solver, *parts)


@pytest.mark.parametrize("directions", [None, 2])
def test_a_large_leader_is_checked_in_a_few_directions(directions: int | None) -> None:
    """Twice as many solves as directions, and they find a gradient that is missing."""

    class Wide(Both):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Parameter(torch.ones(30, dtype=F64))

        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            seen.append(y)
            return super().loss(y, batch)

    seen: list[Tensor] = []
    solver, parts = Iterative(Gradient(0.5), 1), (Followed(), Wide(), torch.empty(0))
    testing.check_adjoint(Unrolled(), solver, *parts, directions=directions)
    assert len(seen) == 1 + 2 * (directions or 30)
    with pytest.raises(AssertionError, match="the gradient of both is off by"):
        testing.check_adjoint(Detached(), solver, *parts, directions=directions)


def test_no_direction_is_no_check() -> None:
    parts = Followed(), Both(), torch.empty(0)
    with pytest.raises(BilevelError, match="directions is 0"):
        testing.check_adjoint(Unrolled(), Iterative(Gradient(0.5), 1), *parts, directions=0)


class Noisy(Both):
    """Its loss is the same for the same random numbers only."""

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return super().loss(y, batch) * torch.rand(())


def test_differences_are_between_equal_random_numbers() -> None:
    solver = Iterative(Gradient(0.5), 1)
    testing.check_adjoint(Unrolled(), solver, Followed(), Noisy(), torch.empty(0))


def test_a_short_step_allows_no_more_than_the_tolerance() -> None:
    solver, parts = Iterative(Gradient(0.5), 1), (Followed(), Mixed(), torch.empty(0))
    torch.nn.init.zeros_(parts[1].rate)
    with pytest.raises(AssertionError, match="the gradient of decay is off"):
        testing.check_adjoint(Detached(), solver, *parts, step=1e-9)


@pytest.mark.parametrize(
    ("adjoint", "update"),
    [
        (Unrolled(), Gradient(0.5)),
        (Unrolled(recompute=True), Optimizer(torch.optim.Adam, lr=0.1)),
        (Unrolled(), Optimizer(torch.optim.AdamW, lr=0.1, amsgrad=True)),
        (Implicit(), Gradient(0.5)),
        (Penalty(1e3), Gradient(0.5)),
        (Forward(), Optimizer(torch.optim.SGD, lr=0.2, momentum=0.5, nesterov=True)),
    ],
)
def test_what_is_right_passes(adjoint: Adjoint, update: Update) -> None:
    leader = Shift()
    before = {name: p.clone() for name, p in leader.named_parameters()}
    solver = Iterative(update, 60)
    testing.check_adjoint(adjoint, solver, Soft(), leader, torch.randn(3, dtype=F64))
    for name, parameter in leader.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize(
    ("adjoint", "steps"), [(Detached(), 60), (Implicit(), 1), (Unrolled(truncate=1), 5)]
)
@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_what_is_wrong_is_named(adjoint: Adjoint, steps: int) -> None:
    solver = Iterative(Gradient(0.3), steps)
    with pytest.raises(AssertionError, match=r"the gradient of matrix is off by \d"):
        testing.check_adjoint(adjoint, solver, Soft(), Shift(), torch.randn(3, dtype=F64))


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")  # y* ignores it
def test_a_parameter_without_elements_has_no_slope_to_check() -> None:
    leader = Shift()
    leader.none = nn.Parameter(torch.zeros(0, 2, dtype=F64))
    solver = Iterative(Gradient(0.5), 60)
    testing.check_adjoint(Unrolled(), solver, Soft(), leader, torch.randn(3, dtype=F64))


def test_a_solve_that_diverges_is_named() -> None:
    solver = Iterative(Gradient(1e3), 400)
    with pytest.raises(AssertionError, match=r"gradient of matrix is not finite: the solve diverg"):
        testing.check_adjoint(Unrolled(), solver, Soft(), Shift(), torch.randn(3, dtype=F64))


def test_an_objective_of_lower_precision_needs_longer_differences() -> None:
    torch.manual_seed(0)
    solver, batch = Iterative(Gradient(0.5), 60), torch.randn(3, dtype=F64)
    with pytest.raises(AssertionError, match=r"differences of step 6e-06: .* lower precision\?"):
        testing.check_adjoint(Unrolled(), solver, Rounded(), Shift(), batch)
    testing.check_adjoint(Unrolled(), solver, Rounded(), Shift(), batch, step=1e-2)


class Led(Mixed):
    """All of its loss acts through y*."""

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return y.sum()


def test_a_gradient_that_is_lost_as_a_whole_is_wrong() -> None:
    solver, parts = Iterative(Gradient(0.5), 1), (Followed(), Led(), torch.empty(0))
    testing.check_adjoint(Unrolled(), solver, *parts)
    with pytest.raises(AssertionError, match="the gradient of decay is off by 1 from"):
        testing.check_adjoint(Detached(), solver, *parts)


def test_a_leader_without_parameters_has_no_gradient() -> None:
    leader = Shift().requires_grad_(False)
    with pytest.raises(AssertionError, match="Shift has no trainable parameter"):
        testing.check_adjoint(Detached(), Iterative(Gradient(0.3), 1), Soft(), leader, None)


class Median(FollowerProblem):
    """A regression by absolute errors, whose second derivative is 0 wherever there is one."""

    sense = "min"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(2, dtype=F64)

    def objective(self, leader: LeaderProblem, y: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, target = batch
        decay = leader.log_decay.exp() / 2 * y.square().sum()
        return (target - x @ y).abs().mean() / 2 + decay


class Decayed(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.tensor(-1.0, dtype=F64))

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return y.square().sum()


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=str)
def test_a_step_across_kinks_shows_what_they_add(adjoint: Adjoint) -> None:
    x = torch.randn(4000, 2, dtype=F64)
    target = x @ torch.tensor([1.0, -2.0], dtype=F64) + torch.randn(4000, dtype=F64)
    leader, solver = Decayed(), Iterative(Gradient(0.3), 200)
    with pytest.raises(AssertionError, match="off by"):
        testing.check_adjoint(
            adjoint, solver, Median(), leader, (x, target), tolerance=0.1, step=0.1
        )


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_errors_are_measured_by_the_largest_element_of_all_parameters() -> None:
    """One that nothing reads has a gradient of zero, of which nothing is a part."""
    leader = Shift()
    leader.aside = nn.Parameter(torch.ones(2, dtype=F64))
    batch = torch.randn(3, dtype=F64)
    testing.check_adjoint(Unrolled(), Iterative(Gradient(0.5), 60), Soft(), leader, batch)


@pytest.mark.parametrize("adjoint", [Unrolled(), Forward()], ids=str)
def test_a_warm_start_is_the_same_for_each_solve(adjoint: Adjoint) -> None:
    """And the solver goes on from where it would have."""
    solver, batch = Iterative(Gradient(0.1), 2, warm_start=True), torch.randn(3, dtype=F64)
    testing.check_adjoint(adjoint, solver, Soft(), Shift(), batch)
    assert solver.kept is None
    kept = solver.kept = torch.ones(2, dtype=F64), None
    testing.check_adjoint(Unrolled(), solver, Soft(), Shift(), batch)
    assert solver.kept is kept
    with pytest.raises(AssertionError, match="off by"):
        testing.check_adjoint(Detached(), solver, Soft(), Shift(), batch)
