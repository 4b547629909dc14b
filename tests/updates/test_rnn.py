"""Recurrent updates against torch's own cell, and what must hold of any learned update."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bilevel.errors import BilevelError
from bilevel.updates import ConvRNN, CoordinateRNN
from bilevel.updates.rnn import ConvGRUCell

EPS = 8 / 255


def images(*shape, dtype=torch.float32):
    sizes = 10.0 ** torch.arange(shape[0]).reshape(-1, 1, 1, 1)
    return torch.rand(shape, dtype=dtype), (sizes * torch.randn(shape)).to(dtype)


def two_steps(update, y, gradients, context=None, forget=False):
    state = None
    for gradient in gradients:
        y, state = update(y, gradient, context, None if forget else state)
    return y


def assert_twice_differentiable(update, y, gradient, context):
    """Of the answer after two steps: to the gradient, and to each parameter."""
    update, parameters = update.double(), dict(update.named_parameters())

    def answer(gradient, *values):
        weights = dict(zip(parameters, values, strict=True))
        moved, state = functional_call(update, weights, (y, gradient, context, None))
        return functional_call(update, weights, (moved, gradient.flip(0), context, state))[0]

    inputs = (gradient.requires_grad_(), *parameters.values())
    assert torch.autograd.gradcheck(answer, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(answer, inputs, fast_mode=True)


def test_convolutional_cell_is_a_gru_cell_on_a_single_pixel():
    cell, reference = ConvGRUCell(2, 3), nn.GRUCell(2, 3)
    with torch.no_grad():  # the centre is all that a 3×3 kernel sees of one pixel
        reference.weight_ih.copy_(cell.input.weight[:, :, 1, 1])
        reference.weight_hh.copy_(cell.memory.weight[:, :, 1, 1])
        reference.bias_ih.copy_(cell.input.bias)
        reference.bias_hh.copy_(cell.memory.bias)
    x, memory = torch.randn(5, 2), torch.randn(5, 3)
    new = cell(x[:, :, None, None], memory[:, :, None, None])
    torch.testing.assert_close(new[:, :, 0, 0], reference(x, memory))


def test_conv_rnn_is_its_formula():
    x, gradient = images(2, 3, 4, 4)
    update = ConvRNN(3, EPS, hidden=4)
    y, state = update(torch.ones_like(x), gradient, x, None)
    features = torch.cat([x, gradient / gradient.abs().amax((1, 2, 3), keepdim=True)], 1)
    memory = update.cell(features, torch.zeros(2, 4, 4, 4))
    torch.testing.assert_close(state, memory)
    torch.testing.assert_close(y, 1 + EPS * torch.tanh(update.last(memory)))


def test_conv_rnn_never_depends_on_batch_mates():
    x, gradient = images(3, 1, 5, 5)
    update, zeros = ConvRNN(1, EPS, hidden=4).train(), torch.zeros_like(x)
    together = two_steps(update, zeros, [gradient, -gradient], x)
    alone = [
        two_steps(update, zeros[[i]], [gradient[[i]], -gradient[[i]]], x[[i]]) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("inputs", [("context",), ("gradient",), ("context", "gradient")])
def test_conv_rnn_starts_as_a_sign_step(inputs):
    x, gradient = images(2, 3, 4, 4)
    update = ConvRNN(3, EPS, hidden=4, inputs=inputs, gradient_skip=2.0)
    y, _ = update(torch.zeros_like(x), gradient, x, None)
    torch.testing.assert_close(y, EPS * math.tanh(2) * gradient.sign())


def test_conv_rnn_settings_reach_the_base():
    x, gradient = images(2, 1, 4, 4)
    assert not ConvRNN(1, EPS, inputs=("context",)).needs_gradient
    by_batch = ConvRNN(1, EPS, hidden=2, normalize="batch")
    zeros = torch.zeros_like(x)
    together = by_batch(zeros, gradient, x, None)[0]
    assert not torch.allclose(together[:1], by_batch(zeros[:1], gradient[:1], x[:1], None)[0])


@pytest.mark.parametrize("update", [ConvRNN(1, EPS, hidden=4), CoordinateRNN(EPS, hidden=4)])
def test_memory_of_the_first_step_moves_the_second(update):
    x, gradient = images(2, 1, 4, 4)
    zeros = torch.zeros_like(x)
    after_it = two_steps(update, zeros, [gradient, gradient], x)
    after_another = two_steps(update, zeros, [-gradient, gradient], x)
    first, other = (update(zeros, g, x, None)[0] for g in (gradient, -gradient))
    assert not torch.allclose(after_it - first, after_another - other, rtol=1e-3)
    forgotten = two_steps(update, zeros, [-gradient, gradient], x, forget=True)
    torch.testing.assert_close(forgotten - other, first)


@pytest.mark.parametrize("skip", [None, 0.5])
def test_conv_rnn_is_twice_differentiable(skip):
    x, gradient = images(2, 1, 3, 3, dtype=torch.float64)
    update = ConvRNN(1, 0.5, hidden=2, gradient_skip=skip)
    nn.init.normal_(update.last.weight, std=0.3)
    assert_twice_differentiable(update, torch.zeros_like(x), gradient, x)


@pytest.mark.parametrize("skip", [None, 0.5])
def test_coordinate_rnn_is_twice_differentiable(skip):
    _, gradient = images(2, 1, 1, 3, dtype=torch.float64)
    update = CoordinateRNN(0.5, hidden=2, gradient_skip=skip)
    nn.init.normal_(update.last.weight, std=0.3)
    assert_twice_differentiable(update, torch.zeros_like(gradient), gradient, None)


def test_coordinate_rnn_is_its_formula():
    """Coordinate by coordinate, with the log-sign features of Andrychowicz et al. as printed."""
    gradient = torch.tensor([[8.0, -2.0, 1e-6, 0.0]])
    update = CoordinateRNN(0.1, hidden=3)
    y, state = update(torch.ones(1, 4), gradient, None, None)
    for i, g in enumerate([1.0, -0.25, 1e-6 / 8, 0.0]):
        large = abs(g) >= math.exp(-10)
        features = [math.log(abs(g)) / 10, math.copysign(1, g)] if large else [-1, math.exp(10) * g]
        memory = update.cell(torch.tensor([features]))
        torch.testing.assert_close(state[[i]], memory)
        torch.testing.assert_close(y[0, i], 1 + 0.1 * update.last(memory)[0, 0])


def test_coordinate_rnn_computes_many_coordinates_in_parts(monkeypatch):
    update, sizes = CoordinateRNN(scale=0.1, gradient_skip=0.5), []
    update.cell.register_forward_hook(lambda *call: sizes.append(len(call[2])))
    y, gradients = {"w": torch.randn(5, 6)}, [torch.randn(5, 6) for _ in range(2)]
    found = []
    for rows in (30, 7):
        monkeypatch.setattr("bilevel.updates.rnn.ROWS", rows)
        given = [gradient.clone().requires_grad_() for gradient in gradients]
        moved, state = update(y, {"w": given[0]}, None, None)
        moved, state = update(moved, {"w": given[1]}, None, state)
        slopes = torch.autograd.grad(moved["w"].square().sum(), [*given, *update.parameters()])
        found.append([moved["w"].detach(), state.detach(), *slopes])
    assert sizes == 2 * [30] + 2 * [7, 7, 7, 7, 2]
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)


def test_coordinate_rnn_treats_all_coordinates_alike():
    y, gradient, order = torch.randn(1, 6), torch.randn(1, 6), torch.randperm(6)
    update = CoordinateRNN(0.1, hidden=3)
    moved, _ = update(y, gradient, None, None)
    permuted, _ = update(y[:, order], gradient[:, order], None, None)
    torch.testing.assert_close(permuted, moved[:, order])


def test_coordinate_rnn_moves_a_dict_as_one_sample():
    row, gradient = torch.randn(1, 6), torch.randn(1, 6)
    update = CoordinateRNN(0.1, hidden=3, gradient_skip=0.5)
    nn.init.normal_(update.last.weight)
    as_dict = lambda row: {"w": row[0, :4].reshape(2, 2), "b": row[0, 4:]}  # noqa: E731
    y, state = as_dict(row), None
    for _ in range(2):
        row, row_state = update(row, gradient, None, state)
        reordered = dict(reversed(as_dict(gradient).items()))
        y, state = update(y, reordered, None, state)
        torch.testing.assert_close(state, row_state)
        torch.testing.assert_close(y, as_dict(row))


def test_coordinate_rnn_does_not_depend_on_scale_or_batch_mates():
    x, gradient = images(3, 1, 2, 2)
    update, zeros = CoordinateRNN(0.1, hidden=3), torch.zeros_like(x)
    moved, _ = update(zeros, gradient, None, None)
    torch.testing.assert_close(update(zeros, 1e6 * gradient, None, None)[0], moved)
    alone = torch.cat([update(zeros[[i]], gradient[[i]], None, None)[0] for i in range(3)])
    torch.testing.assert_close(moved, alone)


def test_coordinate_rnn_starts_as_gradient_ascent():
    gradient = torch.tensor([[3.0, -4.0, 0.0]])
    y, _ = CoordinateRNN(0.1, gradient_skip=0.5)(torch.ones(1, 3), gradient, None, None)
    assert y.tolist() == [[2.5, -1.0, 1.0]]


@pytest.mark.parametrize("gradient", [torch.zeros(1, 3), 1e-30 * torch.ones(1, 3)])
def test_coordinate_rnn_has_finite_derivatives_at_small_gradients(gradient):
    gradient.requires_grad_()
    y, _ = CoordinateRNN(0.1, gradient_skip=0.5)(torch.zeros(1, 3), gradient, None, None)
    y.sum().backward()
    assert gradient.grad.isfinite().all()


@pytest.mark.parametrize("skip", [None, 0.5])
@pytest.mark.parametrize("kind", ["image", "coordinate"])
def test_gradient_reaches_every_parameter(kind, skip):
    x, gradient = images(2, 1, 4, 4)
    update = (
        ConvRNN(1, 1.0, hidden=4, gradient_skip=skip)
        if kind == "image"
        else CoordinateRNN(1.0, hidden=4, gradient_skip=skip)
    )
    nn.init.normal_(update.last.weight)
    two_steps(update, x, [gradient, -2 * gradient.roll(1)], x).square().sum().backward()
    for name, parameter in update.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_coordinate_rnn_learns_to_descend_faster():
    """Meta-training on random quadratics beats the gradient step that it starts as."""
    curvature = torch.tensor([1.0, 0.1])
    update = CoordinateRNN(0.5, hidden=8, gradient_skip=0.5)
    optimizer = torch.optim.Adam(update.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        y, state, total = {"w": torch.randn(16, 2)}, None, 0.0
        for _ in range(5):
            y, state = update(y, {"w": -curvature * y["w"].detach()}, None, state)
            total = total + (curvature * y["w"].square()).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("update", [ConvRNN(1, EPS, hidden=4), CoordinateRNN(EPS, hidden=4)])
def test_is_one_graph_without_synchronisation(update):
    x, gradient = images(2, 1, 4, 4)
    expected = two_steps(update, x, [gradient, -gradient], x)
    compiled = torch.compile(update, backend="eager", fullgraph=True)
    with torch.no_grad():  # the compiler reads y.grad, which warns where y is not a leaf
        torch.testing.assert_close(two_steps(compiled, x, [gradient, -gradient], x), expected)
    x, gradient = x.to("meta"), gradient.to("meta")
    assert two_steps(update.to("meta"), x, [gradient, gradient], x).shape == x.shape


@pytest.mark.parametrize("update", [ConvRNN(1, EPS, hidden=4), CoordinateRNN(EPS, hidden=4)])
def test_runs_in_mixed_precision(update):
    x, gradient = images(2, 1, 4, 4)
    expected = two_steps(update, x, [gradient, -gradient], x)
    with torch.autocast("cpu", torch.bfloat16):
        y = two_steps(update, x, [gradient, -gradient], x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0, atol=0.02 * EPS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvRNN(3, EPS, hidden=0), "hidden is 0"),
        (lambda: ConvRNN(3, -1.0), "scale is -1.0"),
        (lambda: ConvRNN(3, EPS, inputs=("state",)), "inputs is"),
        (lambda: CoordinateRNN(0.0), "scale is 0.0"),
        (lambda: CoordinateRNN(1.0, hidden=0), "hidden is 0"),
        (lambda: CoordinateRNN(1.0, gradient_skip=math.nan), "gradient_skip is nan"),
    ],
)
def test_bad_argument_is_an_error(make, message):
    with pytest.raises(BilevelError, match=message):
        make()


def test_state_of_another_y_is_an_error():
    x = torch.zeros(2, 1, 4, 4)
    state = ConvRNN(1, EPS, hidden=4)(x, x, x, None)[1]
    with pytest.raises(
        BilevelError, match=r"state has shape \(2, 4, 4, 4\): y needs \(1, 4, 4, 4\)"
    ):
        ConvRNN(1, EPS, hidden=4)(x[:1], x[:1], x[:1], state)
    with pytest.raises(BilevelError, match="give state=None"):
        CoordinateRNN(EPS, hidden=4)(x, x, None, torch.zeros(3, 4))


def test_missing_gradient_is_an_error():
    with pytest.raises(BilevelError, match="the gradient is None"):
        CoordinateRNN(EPS)(torch.zeros(2, 2), None, None, None)


def test_a_state_of_the_same_size_and_another_shape() -> None:
    update, x = ConvRNN(1, 0.1, hidden=4), torch.rand(2, 1, 4, 8)
    _, state = update(x, x, x, None)
    turned = x.transpose(2, 3)
    with pytest.raises(BilevelError, match="state has shape"):
        update(turned, turned, turned, state)
