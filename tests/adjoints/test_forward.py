"""Forward mode: objectives that torch's own gets wrong, its memory, and what it refuses.

Its gradients are compared with others in test_unrolled.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from bilevel import (
    BilevelError,
    FollowerProblem,
    Forward,
    Iterative,
    LeaderProblem,
    Oracle,
    Solver,
    Unrolled,
)
from bilevel.experiment.memory import peak_mib
from bilevel.robustness import Batch
from bilevel.updates import Gradient, Update
from tests.problems import Nearest, Weights
from tests.valleys import F64, Numbers, Quadratic, error, hypergradient, pulled_back, valley

Objective = Callable[[Tensor, Tensor], Tensor]


def positive(y: Tensor, theta: Tensor) -> Tensor:
    return 3 * torch.eye(3, dtype=F64) + torch.outer(y * theta, y * theta)


class Given(Quadratic):
    """Of y and θ, both of three numbers."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.given = objective

    def objective(self, leader: Numbers, y: Tensor, batch: Any) -> Tensor:
        return self.given(y + 1, leader.theta)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "objective",
    [
        lambda y, theta: torch.logdet(positive(y, theta)),
        lambda y, theta: theta @ torch.linalg.solve(positive(y, theta), y),
        lambda y, theta: F.mse_loss(y, theta),
        lambda y, theta: F.huber_loss(y, theta * y),
        pytest.param(
            lambda y, theta: torch.cdist(positive(y, theta), positive(theta, theta)).sum(),
            marks=pytest.mark.skipif(
                TorchVersion(torch.__version__) < "2.14",
                reason="older torch cannot",
            ),
        ),
    ],
    ids=["logdet", "solve", "mse_loss", "huber_loss", "cdist"],
)
def test_objectives_whose_gradient_torch_cannot_push_forward(objective: Objective) -> None:
    follower, leader, v = Given(objective), Numbers(3), torch.randn(3, dtype=F64)
    found, like = (
        hypergradient(adjoint, Iterative(Gradient(0.1), 5), follower, leader, valley(3, 2.0), v)[0]
        for adjoint in (Forward(), Unrolled())
    )
    assert error(found, like) < 1e-10


def test_the_memory_of_one_step() -> None:
    class Wide(FollowerProblem):
        sense = "min"

        def init(self, batch: Tensor) -> Tensor:
            return torch.ones(batch.shape[1])

        def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
            return (leader.weight * (batch * y).tanh().softmax(1).sum(1)).square().mean()

    class One(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            return y.sum()

    leader, batch = One(), torch.randn(2000, 50)

    def backward(steps: int) -> None:
        solver = Iterative(Gradient(0.1), steps)
        Forward().solve(solver, Wide(), leader, batch).value.sum().backward()

    few, many = (peak_mib(partial(backward, steps), torch.device("cpu")) for steps in (3, 12))
    assert many < 1.1 * few


class Distant(Update):
    def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> tuple[Tensor, None]:
        return y - torch.cdist(gradient[:, None], y[:, None]).sum(1), None


class Curved(Update):
    """Takes second derivatives by forward mode, within which there is no other."""

    def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> tuple[Tensor, None]:
        return y + torch.func.hessian(lambda point: point.square().sum())(y) @ gradient / 10, None


@pytest.mark.parametrize("update", [Distant(), Curved()])
def test_a_step_without_forward_derivative(update: Update) -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    with pytest.raises(BilevelError, match=r"forward derivative.*take Unrolled\(recompute=True\)"):
        hypergradient(Forward(), Iterative(update, 2), Quadratic(), leader, batch, v)


def test_an_update_that_takes_a_gradient_of_its_own() -> None:
    """Firms with costs 1 and 2 whose price is 10 − q − Σy: y* = (10 − q − 2c + Σc) / 3."""
    costs = torch.tensor([1.0, 2.0], dtype=F64)

    class Market(FollowerProblem):
        sense = "max"

        def init(self, batch: None) -> Tensor:
            return torch.zeros(2, dtype=F64)

        def objective(self, leader: Numbers, y: Tensor, batch: None) -> Tensor:
            return (10 - leader.theta - y.sum() - costs) @ y

    class Reaction(Update):
        needs_gradient = False

        def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> tuple[Tensor, None]:
            with torch.enable_grad():
                point = y if y.requires_grad else y.detach().requires_grad_()
                profits = (10 - leader.theta - point.sum() - costs) * point
                own = [
                    torch.autograd.grad(profit, point, create_graph=True)[0][i]
                    for i, profit in enumerate(profits)
                ]
            return y + 0.2 * torch.stack(own), None

    leader, v, solver = Numbers(1), torch.ones(2, dtype=F64), Iterative(Reaction(), 100)
    for adjoint in (Forward(), Unrolled()):
        slope, _ = hypergradient(adjoint, solver, Market(), leader, None, v)
        assert error(slope, torch.tensor([-2 / 3], dtype=F64)) < 1e-10


class Langevin(Update):
    """Gradient steps with noise."""

    def __init__(self, generator: torch.Generator | None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> tuple[Tensor, None]:
        noise = torch.randn(y.shape, dtype=F64, generator=self.generator)
        return y + 0.05 * gradient + 0.3 * y * noise, None


class Sampling(Quadratic):
    """Of one of the numbers at each step."""

    def __init__(self, generator: torch.Generator | None) -> None:
        super().__init__()
        self.generator = generator

    def objective(self, leader: Numbers, y: Tensor, batch: Any) -> Tensor:
        row = torch.randint(len(y), (1,), generator=self.generator)
        return super().objective(leader, y, batch) + y[row].sum()


@pytest.mark.parametrize("noisy", ["update", "objective"])
def test_a_solve_that_cannot_be_repeated(noisy: str) -> None:
    """The random numbers of a generator of one's own are not rewound; torch's global ones are."""
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.ones(4, dtype=F64)

    def slope(adjoint: Forward | Unrolled, generator: torch.Generator | None) -> Tensor:
        torch.manual_seed(0)
        update = Langevin(generator) if noisy == "update" else Gradient(0.1)
        follower = Sampling(generator) if noisy == "objective" else Quadratic()
        return hypergradient(adjoint, Iterative(update, 8), follower, leader, batch, v)[0]

    assert error(slope(Forward(), None), slope(Unrolled(), None)) < 1e-10
    with pytest.raises(BilevelError, match=r"led elsewhere when .* repeated.*a Generator or numpy"):
        slope(Forward(), torch.Generator().manual_seed(0))


class Short(Solver):
    """The points on the first hundredths of the way to θ, with noise relative to the way."""

    def __init__(self, points: int, noise: float) -> None:
        super().__init__()
        self.points, self.noise = points, noise
        self.generator = torch.Generator().manual_seed(0)

    def answer(self, oracle: Oracle) -> Tensor:
        y = oracle.init()
        factor = 1 + self.noise * torch.randn((), dtype=F64, generator=self.generator)
        step = 0.01 * factor * (oracle.leader.theta - y)
        return torch.cat([y + (k + 1) * step for k in range(self.points)])


class Far(FollowerProblem):
    """min over y of ‖y − θ‖² from 100."""

    sense = "min"

    def init(self, batch: Any) -> Tensor:
        return torch.full((1, 3), 100, dtype=F64)

    def objective(self, leader: Numbers, y: Tensor, batch: Any) -> Tensor:
        return (y - leader.theta).square().sum()


def test_rounding_is_relative_to_the_way_from_the_start() -> None:
    """Noise of a thousandth of the way may come from kernels; a tenth is another solve."""
    leader, v = Numbers(3), torch.ones(1, 3, dtype=F64)
    slope, _ = hypergradient(Forward(), Short(1, noise=1e-3), Far(), leader, None, v)
    torch.testing.assert_close(slope, torch.full((3,), 0.01, dtype=F64), rtol=0.01, atol=0)
    with pytest.raises(BilevelError, match="led elsewhere"):
        hypergradient(Forward(), Short(1, noise=0.1), Far(), leader, None, v)


def test_a_path_that_is_longer_than_its_start() -> None:
    leader, v = Numbers(3), torch.ones(3, 3, dtype=F64)
    slope, _ = hypergradient(Forward(), Short(3, noise=0.0), Far(), leader, None, v)
    torch.testing.assert_close(slope, torch.full((3,), 0.06, dtype=F64))


def test_an_answer_by_a_formula_has_no_start() -> None:
    class Formula(Solver):
        def answer(self, oracle: Oracle) -> Tensor:
            return torch.linalg.solve(oracle.batch.h, oracle.batch.b @ oracle.leader.theta)

    batch, leader, v = valley(4, 5.0), Numbers(3), torch.ones(4, dtype=F64)
    slope, _ = hypergradient(Forward(), Formula(), Quadratic(), leader, batch, v)
    assert error(slope, pulled_back(batch, v)) < 1e-10


def test_forward_mode_for_many_numbers() -> None:
    solver = Iterative(Gradient(0.1), 2)
    with pytest.raises(BilevelError, match=r"would solve 3 times.*take Unrolled\(recompute=True\)"):
        Forward(limit=2).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))


class Many(Numbers):
    def __init__(self, numbers: int) -> None:
        super().__init__(3)
        self.more = nn.Parameter(torch.ones(numbers - 3, dtype=F64))


def test_the_limit_counts_what_is_trained() -> None:
    solver, follower, batch = Iterative(Gradient(0.1), 1), Quadratic(), valley(3, 2.0)
    Forward().solve(solver, follower, Many(100), batch)
    with pytest.raises(BilevelError, match="would solve 101 times"):
        Forward().solve(solver, follower, Many(101), batch)
    leader = Many(101)
    leader.more.requires_grad_(False)
    Forward(limit=3).solve(solver, follower, leader, batch)


class Pair(Far):
    def init(self, batch):
        return torch.full((2, 3), 100, dtype=F64)


def test_a_path_from_a_start_of_two_rows() -> None:
    v = torch.ones(6, 3, dtype=F64)
    slope, _ = hypergradient(Forward(), Short(3, noise=0.0), Pair(), Numbers(3), None, v)
    torch.testing.assert_close(slope, torch.full((3,), 0.12, dtype=F64))


def test_an_objective_that_is_linear_in_a_part_of_y() -> None:
    """The other part is θ − (1 − 2η)³ θ after three steps."""

    class Partly(Far):
        def init(self, batch: Any) -> Any:
            return {"linear": torch.zeros(3, dtype=F64), "near": torch.zeros(3, dtype=F64)}

        def objective(self, leader: Numbers, y: Any, batch: Any) -> Tensor:
            return y["linear"].sum() + super().objective(leader, y["near"], batch)

    leader, v = Numbers(3), dict.fromkeys(("linear", "near"), torch.ones(3, dtype=F64))
    slope, _ = hypergradient(Forward(), Iterative(Gradient(0.1), 3), Partly(), leader, None, v)
    torch.testing.assert_close(slope, torch.full((3,), 1 - 0.8**3, dtype=F64))


class After(Nearest):
    """Its objective holds the answer of another solve."""

    def __init__(self, before: Tensor) -> None:
        self.before = before

    def objective(self, leader, y, batch):
        return super().objective(leader, y, batch) + (y - self.before).square().sum(1) / 2


class Chained(Solver):
    def answer(self, oracle):
        y = oracle.init()
        for _ in range(2):
            after = oracle.of(After(y))
            y, _ = after.advance(Gradient(0.3), after.init(), None, 40)
        return y


def test_solves_that_follow_each_other_are_told_what_differentiates_them() -> None:
    leader, batch = Weights(3), Batch(torch.ones(2, 3), torch.zeros(2))
    answer = Unrolled().solve(Chained(), Nearest(), leader, batch).value
    (slope,) = torch.autograd.grad(answer.sum(), leader.w)
    torch.testing.assert_close(slope, torch.full((3,), 1.5))  # 1/2 + 1/4, of two samples
    answer = Forward().solve(Chained(), Nearest(), leader, batch).value
    with pytest.raises(BilevelError, match=r"After\.objective reads a tensor .* take Unrolled"):
        answer.sum().backward()
