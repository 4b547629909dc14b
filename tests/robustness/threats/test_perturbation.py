"""Threat models: projections, random starts, and errors for bad radii."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bilevel import BilevelError, ZeroSum
from bilevel.robustness import L2, Batch, Linf, Perturbation
from bilevel.robustness.threats.norms import NORMS, check_epsilon
from tests.problems import BatchNormNet, images

TINY = 1e-6  # rounding of numbers up to 1 in float32
KINDS = pytest.mark.parametrize("kind", [Linf, L2])


def size(kind: type[Perturbation], delta: Tensor) -> Tensor:
    """The norm of each image's perturbation."""
    return delta.flatten(1).norm(p=math.inf if kind is Linf else 2, dim=1)


@KINDS
def test_the_norm_is_that_of_each_image(kind: type[Perturbation]) -> None:
    delta = torch.randn(5, 3, 4, 6)
    torch.testing.assert_close(kind(0.1).norm(delta), size(kind, delta))


@KINDS
def test_no_step_of_a_length_climbs_a_linear_function_more(kind: type[Perturbation]) -> None:
    slope, origin = torch.randn(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    moved, _ = kind(1.0).ascent(0.3)(origin, slope, None, None)
    torch.testing.assert_close(size(kind, moved), torch.tensor([0.3]))
    others = kind(1.0, start=0.3).noise(torch.zeros(2000, 1, 4, 4))
    others *= (0.3 / size(kind, others)).view(-1, 1, 1, 1)
    assert (others * slope).flatten(1).sum(1).max() < (moved * slope).sum()


@pytest.mark.parametrize(
    ("eps", "norm", "message"),
    [
        (0.0, "linf", "epsilon is 0.0: .* 0 < epsilon ≤ 1, 8/255"),
        (8, "linf", "epsilon is 8: .* rather than 8"),
        (math.nan, "linf", "epsilon is nan"),
        (-1.0, "l2", "epsilon is -1.0: .* 0 < epsilon < ∞, say 0.5"),
        (math.inf, "l2", "epsilon is inf"),
        (0.5, "l0", "norm is 'l0': .* 'linf', 'l2', 'l1'"),
    ],
)
def test_a_radius_leaves_room(eps: float, norm: Any, message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        check_epsilon(eps, norm)


def test_a_norm_of_ones_own_needs_a_radius_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "own", L2)
    own: Any = "own"
    check_epsilon(3.0, own)
    with pytest.raises(BilevelError, match=r"epsilon is 0: .* give 0 < epsilon < ∞ \(the method"):
        check_epsilon(0, own)


def test_a_ball_may_be_as_large_as_the_pixel_range_and_in_l2_larger() -> None:
    check_epsilon(1.0, "linf")
    check_epsilon(3.0, "l2")


@st.composite
def perturbed(draw: st.DrawFn) -> tuple[Batch, Tensor]:
    """Images, some of whose pixels are black or white, and perturbations of any length."""
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 3])), draw(st.integers(1, 4)), 2)
    torch.manual_seed(draw(st.integers(0, 10_000)))
    x = (torch.rand(shape) * 1.4 - 0.2).clamp(0, 1)
    delta = torch.randn(shape) * 10.0 ** draw(st.integers(-4, 2))
    return Batch(x, torch.zeros(shape[0], dtype=torch.long)), delta


@KINDS
@settings(max_examples=50, deadline=None)
@given(case=perturbed(), eps=st.floats(0, 1))
def test_a_projection_lies_in_ball_and_box_and_stays(
    kind: type[Perturbation], case: tuple[Batch, Tensor], eps: float
) -> None:
    batch, delta = case
    follower = kind(eps)
    projected = follower.project(delta, batch)
    assert (size(kind, projected) <= eps + TINY).all()
    assert ((batch.x + projected >= 0) & (batch.x + projected <= 1)).all()
    assert torch.allclose(follower.project(projected, batch), projected, rtol=0, atol=TINY)


@settings(max_examples=50, deadline=None)
@given(case=perturbed(), eps=st.floats(0, 1))
def test_linf_projects_each_pixel_to_its_nearest_allowed_value(
    case: tuple[Batch, Tensor], eps: float
) -> None:
    """The set is a product of intervals: [max(−ε, −x), min(ε, 1 − x)] for each pixel."""
    batch, delta = case
    low, high = (-batch.x).clamp(min=-eps), (1 - batch.x).clamp(max=eps)
    nearest = torch.minimum(torch.maximum(delta, low), high)
    assert torch.allclose(Linf(eps).project(delta, batch), nearest, rtol=0, atol=TINY)


@KINDS
@pytest.mark.parametrize("shape", [(4, 6), (4, 7, 3), (4, 4, 1, 8, 8)])
def test_samples_of_any_shape_are_projected_each(
    kind: type[Perturbation], shape: tuple[int, ...]
) -> None:
    """Rows of a table, signals, and films of as many pictures as there are films."""
    lengths = torch.tensor([0.001, 1.0, 2.0, 3.0])
    delta = torch.randn(shape)
    delta = delta * (lengths / size(kind, delta)).view(-1, *(1,) * (delta.dim() - 1))
    batch = Batch(torch.full(shape, 0.5), torch.zeros(4).long())
    projected = kind(0.4).project(delta, batch)
    torch.testing.assert_close(size(kind, projected), lengths.clamp(max=0.4), rtol=1e-4, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(case=perturbed(), eps=st.floats(1e-3, 1))
def test_l2_shortens_what_is_too_long_and_leaves_the_rest(
    case: tuple[Batch, Tensor], eps: float
) -> None:
    _, delta = case
    clipped = L2(eps).clip(delta)
    for image, shortened in zip(delta, clipped, strict=True):
        expected = image * min(1.0, eps / float(image.norm()))
        assert torch.allclose(shortened, expected, rtol=1e-5, atol=TINY)
    assert L2(eps).clip(torch.zeros(1, 1, 2, 2)).tolist() == torch.zeros(1, 1, 2, 2).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3])
def test_the_l2_balls_inside_has_the_derivative_of_the_identity(
    dtype: torch.dtype, size: float
) -> None:
    """Where ε / ‖δ‖², the derivative of what is not needed there, overflows."""
    delta = torch.full((1, 1, 2, 2), size, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(L2(0.5).clip(delta).sum(), delta)
    assert torch.equal(slope, torch.ones_like(slope))


@KINDS
def test_a_start_at_zero(kind: type[Perturbation]) -> None:
    assert not kind(0.3).init(images()).any()


@KINDS
def test_random_starts_fill_the_ball_of_their_radius(kind: type[Perturbation]) -> None:
    """Of a ball of radius r in d dimensions the ball of radius r/2 holds the 2⁻ᵈ-th part."""
    batch = Batch(torch.full((4000, 1, 1, 2), 0.5), torch.zeros(4000, dtype=torch.long))
    start = kind(0.4, start=0.2).init(batch)
    sizes = size(kind, start)
    assert 0.199 < sizes.max() <= 0.2
    assert (sizes < 0.1).float().mean() == pytest.approx(0.25, abs=0.03)
    assert start.mean((0, 1, 2)).tolist() == pytest.approx([0, 0], abs=0.01)


@KINDS
def test_a_random_start_lies_in_ball_and_box(kind: type[Perturbation]) -> None:
    batch = images(64)
    start = kind(0.1, start=0.5).init(batch)
    assert (size(kind, start) <= 0.1 + TINY).all()
    assert ((batch.x + start >= 0) & (batch.x + start <= 1)).all()
    assert not torch.equal(start, kind(0.1, start=0.5).init(batch))


def test_a_start_lies_in_the_smaller_set_of_a_subclass() -> None:
    class Darker(Linf):
        def project(self, y: Tensor, batch: Batch) -> Tensor:
            return super().project(y.clamp(max=0), batch)

    start = Darker(0.1, start=0.1).init(images(64))
    assert start.max() == 0 > start.min()


@KINDS
def test_a_batch_without_images(kind: type[Perturbation]) -> None:
    nothing = Batch(torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.long))
    assert kind(0.1, start=0.1).init(nothing).shape == nothing.x.shape


def test_the_objective_is_each_images_cross_entropy_at_the_perturbed_image() -> None:
    follower, batch, model = Linf(0.1), images(), BatchNormNet().eval()
    delta = torch.rand_like(batch.x) - 0.5
    told = follower.objective(ZeroSum(model, follower), delta, batch)
    logits = model(batch.x + delta)
    expected = [F.cross_entropy(row, label) for row, label in zip(logits, batch.y, strict=True)]
    assert torch.allclose(told, torch.stack(expected))
    assert torch.equal(follower.context(delta, batch), batch.x + delta)


@KINDS
@pytest.mark.parametrize("radius", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["eps", "start"])
def test_a_radius_that_is_none(kind: type[Perturbation], name: str, radius: float) -> None:
    with pytest.raises(BilevelError, match=f"{name} is {radius}: a radius is a number from 0 on"):
        kind(**{"eps": 0.1, name: radius})


@KINDS
@pytest.mark.parametrize(
    ("radius", "told"),
    [
        (torch.full((2, 1, 1, 1), 0.1), "a Tensor"),
        (torch.tensor([0.1, 0.2]).numpy(), "a ndarray"),
        ([0.1, 0.2], "a list"),
        (None, "None"),
    ],
)
@pytest.mark.parametrize("name", ["eps", "start"])
def test_a_radius_of_each_image(
    kind: type[Perturbation], name: str, radius: Any, told: str
) -> None:
    with pytest.raises(BilevelError, match=f"{name} is {told}: .* divide each feature by its"):
        kind(**{"eps": 0.1, name: radius})
    assert kind(torch.tensor(0.1)).eps == pytest.approx(0.1)


def test_pixels_are_counted_from_0_to_1() -> None:
    with pytest.raises(BilevelError, match=r"eps is 8: .*8/255 rather than 8"):
        Linf(8)
    assert Linf(1).eps == 1
    assert L2(8).eps == 8


def test_a_classifier_that_returns_more_than_logits() -> None:
    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.flatten(1)}

    follower, batch = Linf(0.1), images()
    with pytest.raises(BilevelError, match=r"returned a dict of \['logits'\]: .*wrap it"):
        follower.objective(ZeroSum(Wrapped(), follower), torch.zeros_like(batch.x), batch)


def test_a_small_start_is_a_start() -> None:
    """The paper's, 1e-4."""
    batch = Batch(torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.long))
    assert 0 < Linf(0.031, start=1e-4).init(batch).abs().max() <= 1.001e-4
