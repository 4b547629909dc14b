"""Normalised gradients: scale-free, one sample at a time, zero where the gradient is zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.tree import leaves
from bilevel.updates import max_abs, unit_norm
from bilevel.updates.normalize import unit_rms

NORMALIZERS = {
    "max_abs": (max_abs, math.inf),
    "L2": (lambda g: unit_norm(g, 2), 2),
    "L1": (lambda g: unit_norm(g, 1), 1),
}
each_normalizer = pytest.mark.parametrize(
    ("normalize", "order"), NORMALIZERS.values(), ids=NORMALIZERS
)

fast = settings(deadline=None, max_examples=50)


@st.composite
def gradients(draw: st.DrawFn) -> Tensor:
    """Gradients (B, 2, 2) whose samples are of very different sizes, some of them zero."""
    numbers = st.floats(-1, 1, width=32)
    samples = draw(st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=4))
    exponents = st.integers(-96, 96)
    scales = draw(st.lists(exponents, min_size=len(samples), max_size=len(samples)))
    scaled = torch.tensor(samples).reshape(-1, 2, 2).double()
    return (scaled * 2.0 ** torch.tensor(scales).reshape(-1, 1, 1)).float()


@each_normalizer
@fast
@given(gradient=gradients())
def test_norm_is_one_and_zero_stays_zero(normalize, order, gradient):
    result = normalize(gradient).flatten(1)
    zero = (gradient == 0).flatten(1).all(1)
    norms = torch.linalg.vector_norm(result.double(), order, dim=1)
    torch.testing.assert_close(norms, (~zero).double(), rtol=1e-5, atol=0)
    assert torch.equal(result[zero], torch.zeros_like(result[zero]))


@each_normalizer
@fast
@given(gradient=gradients())
def test_direction_is_kept(normalize, order, gradient):
    exact = gradient.double().flatten(1)
    norm = torch.linalg.vector_norm(exact, order, dim=1, keepdim=True)
    expected = torch.where(norm > 0, exact / norm, 0)
    torch.testing.assert_close(normalize(gradient).flatten(1).double(), expected)


@each_normalizer
@fast
@given(gradient=gradients(), exponent=st.integers(-20, 20))
def test_scale_makes_no_difference(normalize, order, gradient, exponent):
    scaled = gradient * 2.0**exponent
    survives = scaled / 2.0**exponent == gradient  # nothing was rounded away
    if survives.all():
        torch.testing.assert_close(normalize(scaled), normalize(gradient))


@each_normalizer
@fast
@given(gradient=gradients())
def test_batch_mates_make_no_difference(normalize, order, gradient):
    alone = torch.cat([normalize(sample) for sample in gradient.split(1)])
    torch.testing.assert_close(normalize(gradient), alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_smallest_numbers_are_normalized(dtype):
    smallest = torch.finfo(dtype).smallest_normal / 4
    gradient = torch.tensor([[smallest, -2 * smallest]], dtype=dtype)
    assert max_abs(gradient).tolist() == [[0.5, -1.0]]


def test_largest_numbers_do_not_overflow():
    largest = torch.finfo(torch.float32).max
    assert unit_norm(torch.tensor([[largest, -largest]]), 1).tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize("wrap", [lambda g: g, lambda g: {"y": g}], ids=["tensor", "dict"])
def test_the_1_norm_of_a_large_image_does_not_overflow_half_precision(wrap):
    ones = torch.ones(1, 3, 224, 224, dtype=torch.float16)
    (result,) = leaves(unit_norm(wrap(ones), 1))
    assert result.dtype == torch.float16
    assert result.sum(dtype=torch.float32).item() == pytest.approx(1, rel=0.01)


@each_normalizer
def test_nan_shows_in_its_own_sample_alone(normalize, order):
    result = normalize(torch.tensor([[math.nan, 1.0], [2.0, 0.0]]))
    assert result[0].isnan().any()
    assert not (result[0] > 0).any()  # no direction is left
    assert result[1].tolist() == [1.0, 0.0]


@each_normalizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_infinite_slope_is_the_direction_of_its_sample(normalize, order, dtype):
    gradient = torch.tensor([[math.inf, 1.0], [1.0, -math.inf], [2.0, 0.0]], dtype=dtype)
    expected = torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(normalize(gradient), expected, rtol=0, atol=1e-4)


@each_normalizer
def test_one_number_a_sample(normalize, order):
    assert normalize(torch.tensor([-3.0, 0.0, 0.1])).tolist() == [-1.0, 0.0, 1.0]


@each_normalizer
def test_dict_is_divided_by_its_joint_norm(normalize, order):
    gradient = {"weight": torch.tensor([[3.0, -4.0]]), "bias": torch.tensor([[12.0]])}
    joint = torch.linalg.vector_norm(torch.tensor([3.0, -4.0, 12.0]), order)
    result = normalize(gradient)
    assert list(result) == ["weight", "bias"]
    torch.testing.assert_close(result["weight"], torch.tensor([[3.0, -4.0]]) / joint)
    torch.testing.assert_close(result["bias"], torch.tensor([[12.0]]) / joint)


@each_normalizer
def test_empty_tensors_count_for_nothing(normalize, order):
    assert normalize(torch.empty(0, 3)).shape == (0, 3)
    alone = normalize({"b": torch.tensor([3.0, 4.0])})["b"]
    both = normalize({"a": torch.empty(0), "b": torch.tensor([3.0, 4.0])})
    torch.testing.assert_close(both, {"a": torch.empty(0), "b": alone})
    assert max_abs(torch.empty(0, 3), over="batch").shape == (0, 3)


@each_normalizer
def test_zero_dict_stays_zero(normalize, order):
    assert normalize({"weight": torch.zeros(2, 2)})["weight"].tolist() == [[0, 0], [0, 0]]


@fast
@given(gradient=gradients())
def test_over_the_batch_divides_by_the_batch_maximum(gradient):
    maximum = gradient.abs().max()
    expected = gradient / maximum if maximum > 0 else gradient
    assert torch.equal(max_abs(gradient, over="batch"), expected)


@each_normalizer
def test_derivative_is_finite_at_zero(normalize, order):
    gradient = torch.zeros(1, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(normalize(gradient).sum(), gradient)
    assert slope.isfinite().all()


@each_normalizer
def test_derivatives_are_exact(normalize, order):
    gradient = torch.tensor([[0.3, -0.7], [2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize, gradient)
    assert torch.autograd.gradgradcheck(normalize, gradient)


@each_normalizer
def test_is_one_graph_without_synchronisation(normalize, order):
    compiled = torch.compile(normalize, backend="eager", fullgraph=True)
    gradient = torch.randn(3, 2, 2)
    torch.testing.assert_close(compiled(gradient), normalize(gradient))
    games = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(
        torch.func.vmap(normalize)(games), torch.stack([normalize(game) for game in games])
    )
    assert normalize(gradient.to("meta")).shape == gradient.shape


@fast
@given(gradient=gradients())
def test_root_mean_square_of_a_sample_or_a_dict_is_one(gradient):
    zero = (gradient == 0).flatten(1).all(1)
    squares = unit_rms(gradient).double().flatten(1).square().mean(1)
    torch.testing.assert_close(squares, (~zero).double(), rtol=1e-5, atol=0)
    for shape in ((), (3,)):  # a number a sample
        assert torch.equal(unit_rms(torch.full(shape, -7.0)), torch.full(shape, -1.0))
    shared = unit_rms({"weight": torch.tensor([[3.0, -4.0]]), "bias": torch.zeros(2)})
    torch.testing.assert_close(shared["weight"], torch.tensor([[3.0, -4.0]]) / 2.5)


def test_unknown_over_is_an_error():
    with pytest.raises(BilevelError, match=r"over is 'image'.*'sample', 'batch'"):
        max_abs(torch.ones(1, 1), over="image")
