"""Evolution strategies: unbiased, for followers without derivatives, and how far they are off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    BilevelError,
    FollowerProblem,
    HypergradientWarning,
    Iterative,
    LeaderProblem,
    Parametric,
    Sampled,
    Solver,
)
from bilevel.solvers import Oracle
from bilevel.updates import CNN, Gradient
from tests.problems import image_game
from tests.valleys import (
    F64,
    Known,
    Numbers,
    Quadratic,
    Valley,
    hypergradient,
    optimum,
    pulled_back,
    valley,
)


def test_the_estimates_spread_around_the_gradient_as_they_say() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    truth = pulled_back(batch, v)
    slopes, said = [], []
    for _ in range(100):
        slope, solution = hypergradient(
            Sampled(0.1, samples=40), Known(optimum), Quadratic(), leader, batch, v
        )
        slopes.append(slope)
        said.append(solution.stats["residual"] * slope.norm())
    every = torch.stack(slopes)
    spread = every.std(0)
    assert ((every.mean(0) - truth).abs() < 4 * spread / 100**0.5).all()
    assert torch.stack(said).mean() == pytest.approx(float(spread.norm()), rel=0.2)


def test_a_follower_without_derivatives_whose_solver_draws() -> None:
    """y* = round(θ·10)/10 by search among random points, the same for both sides."""

    class Rounded(FollowerProblem):
        sense = "max"

        def init(self, batch: None) -> Tensor:
            return torch.zeros(1, dtype=F64)

        def objective(self, leader: Numbers, y: Tensor, batch: None) -> Tensor:
            return -(y - (10 * leader.theta).round() / 10).abs().sum()

    class Search(Solver):
        def answer(self, oracle: Oracle) -> Tensor:
            points = oracle.init() + 2 * torch.rand(400, 1, dtype=F64)
            gains = torch.stack([oracle.gain(point) for point in points])
            return points[gains.argmax()]

    leader = Numbers(1)
    slope, _ = hypergradient(
        Sampled(0.3, samples=60), Search(), Rounded(), leader, None, torch.ones(1, dtype=F64)
    )
    assert slope.item() == pytest.approx(1, rel=0.5)


def test_both_sides_draw_the_same_random_numbers() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)

    def noisy(leader: Numbers, batch: Valley) -> Tensor:
        return optimum(leader, batch) + 1e3 * torch.randn(4)

    slopes = []
    for formula in (optimum, noisy):
        torch.manual_seed(5)
        adjoint, state = Sampled(0.1, samples=50), torch.get_rng_state()
        solution = adjoint.solve(Known(formula), Quadratic(), leader, batch)
        torch.set_rng_state(state)  # the same directions
        slopes.append(torch.autograd.grad(solution.value, leader.theta, v)[0])
    torch.testing.assert_close(*slopes)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_the_solver_answers_again_as_it_did() -> None:
    """In its own mode, and its statistics see the first answer alone."""
    leader, follower, batch = image_game(dtype=F64)
    solver = Iterative(CNN(1, 0.1, width=4).double(), 1)
    adjoint, slopes = Sampled(1.0, samples=2), []
    for mode in (True, False):
        torch.manual_seed(2)
        solution = adjoint.solve(solver.train(), follower, leader, batch)
        solver.train(mode)
        before = [buffer.clone() for buffer in solver.buffers()]
        loss = solution.value.square().sum()
        slopes.append(torch.autograd.grad(loss, next(leader.parameters()))[0])
        assert solution.stats["evaluations"] == 1 + 2 * 2
        assert all(map(torch.equal, solver.buffers(), before))
        assert solver.update.training == mode
    assert slopes[0].any()
    torch.testing.assert_close(*slopes)


def test_a_leader_of_parts_in_several_precisions() -> None:
    class Half(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(2, 1).bfloat16()
            self.scale = nn.Parameter(torch.ones(3))

        def target(self, batch: Tensor) -> Tensor:
            return self.network(batch).float().sum() * self.scale

        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            return (y - 1).square().sum()

    class Follow(FollowerProblem):
        sense = "min"

        def init(self, batch: Tensor) -> Tensor:
            return torch.zeros(3)

        def objective(self, leader: Half, y: Tensor, batch: Tensor) -> Tensor:
            return (y - leader.target(batch)).square().sum()

    leader, batch = Half(), torch.ones(1, 2, dtype=torch.bfloat16)
    solver = Iterative(Gradient(0.5), steps=1)
    y = Sampled(0.1, samples=64).solve(solver, Follow(), leader, batch).value
    leader.loss(y, batch).backward()
    assert leader.scale.grad is not None
    assert leader.scale.grad.any()


def test_an_estimate_that_says_little() -> None:
    batch, leader, v = valley(4, 5.0, numbers=50), Numbers(50), torch.randn(4, dtype=F64)
    given = Sampled(0.1, samples=4), Known(optimum), Quadratic(), leader, batch, v
    with pytest.warns(HypergradientWarning, match="too few samples: .* give more samples"):
        hypergradient(*given)


def test_settings_out_of_range_and_a_solver_without_steps() -> None:
    with pytest.raises(BilevelError, match=r"scale is 0.0: it is positive"):
        Sampled(0.0)
    with pytest.raises(BilevelError, match=r"samples is 1.*give 2, 3"):
        Sampled(0.1, samples=1)
    given = Parametric(torch.zeros(3, dtype=F64)), Quadratic(), Numbers(3), valley(3, 2.0)
    with pytest.raises(BilevelError, match=r"answer of Parametric.*take Implicit\(\)"):
        Sampled(0.1).solve(*given)
