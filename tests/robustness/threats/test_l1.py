"""The L1 ball: its projection, its noise, and its sparse steps against a closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bilevel import BilevelError
from bilevel.robustness import APGD, L1, Adversary, AttackSettings, Batch, attack, make_attacks
from bilevel.robustness.threats.l1 import SparseSign
from bilevel.robustness.threats.norms import check_epsilon
from bilevel.robustness.training.validation import default_attack

F64 = torch.float64


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=8),
    st.floats(0.01, 5),
    st.integers(0, 1000),
)
def test_the_projection_is_the_nearest_point(numbers: list[float], eps: float, seed: int) -> None:
    """⟨δ − p, z − p⟩ ≤ 0 for all z of the ball, such as its corners."""
    delta, ball = torch.tensor([numbers], dtype=F64), L1(eps)
    point = ball.clip(delta)
    assert ball.norm(point).item() <= eps * (1 + 1e-12)
    corners = eps * torch.eye(len(numbers), dtype=F64)
    inner = torch.cat([corners, -corners]) - point
    assert (inner @ (delta - point)[0] <= 1e-9).all()
    torch.testing.assert_close(ball.clip(point), point)


def test_a_batch_is_projected_image_by_image() -> None:
    delta = torch.randn(5, 3, 4, 4) * torch.tensor([0.01, 0.1, 1, 10, 0]).view(-1, 1, 1, 1)
    alone = torch.cat([L1(2.0).clip(one[None]) for one in delta])
    torch.testing.assert_close(L1(2.0).clip(delta), alone)
    assert torch.equal(alone[[0, 4]], delta[[0, 4]])


def test_noise_is_uniform_in_the_ball() -> None:
    """The norm of a uniform point of d numbers is rᵈ-distributed: its mean is d / (d + 1)."""
    torch.manual_seed(0)
    noise = L1(1.0, start=3.0).noise(torch.empty(20_000, 1, 2, 2))
    norms = L1(1.0).norm(noise)
    assert norms.max() <= 3.0
    assert norms.mean().item() == pytest.approx(3 * 4 / 5, rel=0.01)
    assert noise.mean(0).abs().max() < 0.03
    assert noise.abs().mean(0).std() < 0.02


class Slopes(nn.Module):
    """Logits 0 and ⟨w, x⟩: the margin of class 0 is linear."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.randn(size) / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.slopes
        return torch.stack([torch.zeros_like(score), score], 1)


def best(x: Tensor, slopes: Tensor, eps: float) -> Tensor:
    """The most that ⟨w, δ⟩ can be: the steepest values are moved to the bounds, one by one."""
    room = torch.where(slopes > 0, 1 - x, x)
    order = slopes.abs().argsort(descending=True)
    left = (eps - room[:, order].cumsum(1) + room[:, order]).clamp(min=0)
    return (torch.minimum(room[:, order], left) * slopes.abs()[order]).sum(1)


@pytest.mark.parametrize(("eps", "share"), [(0.5, 0.87), (3.0, 0.98), (12.0, 0.98)])
def test_a_linear_classifier_is_attacked_as_well_as_can_be(eps: float, share: float) -> None:
    """But for the smallest ball, whose whole budget is best spent on one value, not on two."""
    torch.manual_seed(0)
    model, x = Slopes(192), torch.rand(40, 3, 8, 8)
    batch, threat = Batch(x, torch.zeros(40).long()), L1(eps)
    rises = []
    for solver in (APGD(), threat.pgm(eps / 10, 40)):
        found = attack(model, threat, solver, batch).x
        assert (threat.norm(found - x) <= eps + 1e-4).all()
        rises.append(
            ((found - x).flatten(1) @ model.slopes) / best(x.flatten(1), model.slopes, eps)
        )
    assert all(rise.min() > share for rise in rises)


def test_a_step_leaves_out_what_the_bounds_stop() -> None:
    x = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    gradient = torch.tensor([[9.0, -8.0, 2.0, -1.0]])
    moved, _ = SparseSign(0.2)(torch.zeros(1, 4), gradient, x, None)
    assert moved.tolist() == [[0.0, 0.0, pytest.approx(0.2), 0.0]]
    free, _ = SparseSign(0.2, None)(torch.zeros(1, 4), gradient, x, None)
    assert free.tolist() == [[pytest.approx(0.2), 0.0, 0.0, 0.0]]
    stuck, _ = SparseSign(0.2)(torch.zeros(1, 4), gradient * 0, x, None)
    assert not stuck.any()


def test_a_step_moves_a_hundredth_of_the_values() -> None:
    """The steepest ones, by the same amount each."""
    gradient = torch.randn(1, 400)
    moved, _ = SparseSign(1.0)(torch.zeros(1, 400), gradient, torch.full((1, 400), 0.5), None)
    steepest = gradient.abs() >= gradient.abs().topk(4).values.amin()
    torch.testing.assert_close(moved, 0.25 * gradient.sign() * steepest)


def test_a_long_step_moves_as_many_values_as_it_takes() -> None:
    """A step of length 3 within [0, 1] moves three values at least, within [0, 10] one."""
    gradient, x = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.zeros(1, 4)
    for width, count in ((1.0, 3), (10.0, 1), (torch.tensor([2.0, 1.0, 1.0, 1.0]), 2)):
        step = L1(1.0, bounds=(torch.zeros(4), torch.zeros(4) + width)).ascent(3.0)
        moved, _ = step(x, gradient, x, None)
        assert (moved > 0).sum() == count
        assert moved.sum().item() == pytest.approx(3.0)


def test_the_ball_is_known_by_its_name() -> None:
    names = [
        one.name for one in make_attacks(["pgm-20", "apgd-ce"], AttackSettings(2.0, 10, norm="l1"))
    ]
    assert names == ["PGM-20", "APGD-CE"]
    threat, solver = default_attack(L1(2.0))
    assert type(threat) is L1
    assert "SparseSign" in repr(solver)
    with pytest.raises(BilevelError, match=r"epsilon is 0: .* give 0 < epsilon < ∞, say 12 for"):
        check_epsilon(0, "l1")
    (square,) = make_attacks(["square"], AttackSettings(2.0, 10, norm="l1"))
    batch = Batch(torch.rand(2, 1, 2, 2), torch.zeros(2).long())
    with pytest.raises(BilevelError, match="Square was given L1: "):
        square.perturb(Slopes(4), batch, 0)


def test_the_projection_within_the_bounds_is_the_nearest_point() -> None:
    """⟨δ − p, z − p⟩ ≤ 0 for random points z of ball and box."""
    torch.manual_seed(0)
    batch = Batch(torch.rand(50, 6, dtype=F64), torch.zeros(50).long())
    ball, delta = L1(1.0), torch.randn(50, 6, dtype=F64)
    point = ball.project(delta, batch)
    assert (ball.norm(point) <= 1 + 1e-9).all()
    assert ((batch.x + point) - (batch.x + point).clamp(0, 1)).abs().max() < 1e-12
    torch.testing.assert_close(ball.project(point, batch), point)
    for _ in range(200):
        other = ball.project(torch.randn(50, 6, dtype=F64), batch)
        assert (((delta - point) * (other - point)).sum(1) <= 1e-9).all()


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_the_gradient_of_the_projection_is_that_of_differences(bounds: Any) -> None:
    torch.manual_seed(0)
    batch = Batch(torch.rand(8, 6, dtype=F64), torch.zeros(8).long())
    delta = torch.randn(8, 6, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: L1(0.9, bounds=bounds).project(y, batch), (delta,))


def test_data_of_any_shape() -> None:
    rows = torch.rand(3, 10) * 4000
    threat = L1(50.0, start=5.0, bounds=(0.0, 4000.0))
    model = Slopes(10)
    model.slopes.data /= 1000
    found = Adversary(model, threat, threat.pgm(10.0, 10))(rows, torch.zeros(3).long())
    assert (threat.norm(found - rows) <= 50.01).all()
    assert ((found - rows) @ model.slopes > 0.9 * 50 * model.slopes.abs().max()).all()


def test_the_signs_of_noise_are_independent() -> None:
    torch.manual_seed(0)
    noise = L1(1.0, start=1.0).noise(torch.empty(4000, 1, 2, 2)).flatten(1)
    assert (noise[:, 0].sign() * noise[:, 1].sign()).mean().abs() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_noise_is_of_the_type_of_the_data(dtype: torch.dtype) -> None:
    threat = L1(5.0, start=5.0)
    assert threat.noise(torch.zeros(0, 3, dtype=dtype)).shape == (0, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).to(dtype)
    x = torch.rand(4, 3, 4, 4, dtype=dtype)
    moved = Adversary(model, threat, threat.pgm(1.0, 3))(x, torch.arange(4) % 3)
    assert moved.dtype == dtype


def test_settings_of_sparse_steps() -> None:
    assert not L1(1.0).ascent(0.1).differentiable
    with pytest.raises(BilevelError, match=r"step is 0.0"):
        L1(1.0).ascent(0.0)


def test_bounds_that_leave_nothing_to_move() -> None:
    threat, x = L1(0.1, bounds=(0.5, 0.5)), torch.full((2, 4), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    found = Adversary(model, threat, threat.pgm(0.1, 2))(x, torch.arange(2))
    assert torch.equal(found, x)


def test_a_long_step_moves_all_values() -> None:
    x = torch.zeros(1, 4)
    moved, _ = SparseSign(6.0)(x, torch.tensor([[4.0, 3.0, 2.0, 1.0]]), x, None)
    assert moved.tolist() == [[1.5] * 4]


@pytest.mark.parametrize("point", [[0.5, 0.5, 0.1], [0.02, -0.1, 0.05]], ids=["outside", "inside"])
def test_the_derivative_where_the_bounds_stop_some(point: list[float]) -> None:
    batch = Batch(torch.tensor([[0.9, 0.9, 0.5]], dtype=F64), torch.zeros(1).long())
    y = torch.tensor([point], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: L1(0.6).project(y, batch), (y,))


def test_the_derivative_of_many_values_that_are_rounded() -> None:
    torch.manual_seed(0)
    batch = Batch(torch.rand(3, 100, dtype=F64), torch.zeros(3).long())
    delta = (0.3 * torch.randn(3, 100, dtype=F64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: L1(12.0).project(y, batch), (delta,))


@pytest.mark.parametrize(("size", "eps"), [(200, 20.0), (100, 5.0)])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_auto_pgd_finds_the_optimum_of_a_linear_function(size, eps, start) -> None:
    """A knapsack: the largest slopes are moved to the bounds, until the budget is spent."""
    torch.manual_seed(0)
    slopes = torch.randn(size)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([0 * slopes, slopes]))
    x, y = torch.rand(10, 1, 1, size), torch.zeros(10, dtype=torch.long)
    room = torch.where(slopes > 0, 1 - x.flatten(1), x.flatten(1))
    value, order = slopes.abs().sort(descending=True)
    room = room[:, order]
    spent = torch.minimum((eps - (room.cumsum(1) - room)).clamp(min=0), room)
    threat = L1(eps, start=start * eps, loss=lambda logits, batch: logits[:, 1])
    found = attack(model, threat, APGD(), Batch(x, y)).x
    risen = (model(found) - model(x))[:, 1] / (spent * value).sum(1)
    assert risen.mean() > 0.99
    assert risen.max() < 1 + 1e-4
