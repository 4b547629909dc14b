"""How the convolutional attackers move: inputs, bounds, the gradient's skip, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bilevel.errors import BilevelError
from bilevel.updates import CNN, max_abs
from bilevel.updates.cnn import FORMS

EPS = 8 / 255
BOTH, CONTEXT, GRADIENT = ("context", "gradient"), ("context",), ("gradient",)
each_form = pytest.mark.parametrize("form", FORMS)


def batch(*shape):
    """Images and their gradients, of very different sizes."""
    sizes = 10.0 ** torch.arange(shape[0]).reshape(-1, 1, 1, 1)
    return torch.rand(shape), sizes * torch.randn(shape)


def move(attacker, x, gradient):
    """The step from y = 0."""
    return attacker(torch.zeros_like(x), gradient, x, None)[0]


@each_form
@pytest.mark.parametrize("inputs", [BOTH, CONTEXT, GRADIENT])
def test_move_stays_within_scale(form, inputs):
    x, gradient = batch(4, 1, 8, 8)
    attacker = CNN(1, EPS, form=form, inputs=inputs, width=2)  # so narrow that width // 4 is 0
    with torch.no_grad():
        for parameter in attacker.parameters():
            parameter *= 100
    delta = move(attacker, x, gradient)
    assert delta.shape == x.shape
    assert 0.9 * EPS < delta.abs().max() <= EPS * (1 + 1e-6)


@pytest.mark.parametrize("inputs", [BOTH, CONTEXT, GRADIENT])
def test_reads_its_inputs_and_no_others(inputs):
    x, gradient = batch(2, 1, 8, 8)
    attacker = CNN(1, EPS, inputs=inputs, width=8).eval()
    assert attacker.needs_gradient == ("gradient" in inputs)
    expected = move(attacker, x, gradient)
    assert torch.equal(move(attacker, 1 - x, gradient), expected) == ("context" not in inputs)
    assert torch.equal(move(attacker, x, -gradient), expected) == ("gradient" not in inputs)


def test_naive_attacker_needs_no_gradient_and_grad_only_no_context():
    x, gradient = batch(2, 1, 8, 8)
    zeros = torch.zeros_like(x)
    assert CNN(1, EPS, inputs=CONTEXT, width=8)(zeros, None, x, None)[0].shape == x.shape
    assert CNN(1, EPS, inputs=GRADIENT, width=8)(zeros, gradient, None, None)[0].shape == x.shape


@each_form
def test_batch_mates_make_no_difference_in_evaluation_mode(form):
    x, gradient = batch(4, 1, 8, 8)
    attacker = CNN(1, EPS, form=form, width=8).eval()
    alone = torch.cat([move(attacker, x[[i]], gradient[[i]]) for i in range(4)])
    torch.testing.assert_close(move(attacker, x, gradient), alone)


def test_batch_normalisation_divides_by_the_batch_maximum():
    x, gradient = batch(4, 1, 8, 8)
    by_batch = CNN(1, EPS, width=8, normalize="batch").eval()
    alone = torch.cat([move(by_batch, x[[i]], gradient[[i]]) for i in range(4)])
    together = move(by_batch, x, gradient)
    assert not torch.allclose(together[0], alone[0])
    features = torch.cat([x, gradient / gradient.abs().max()], 1)
    torch.testing.assert_close(together, EPS * torch.tanh(by_batch.network(features)))


@each_form
@pytest.mark.parametrize("inputs", [BOTH, CONTEXT])
@pytest.mark.parametrize("skip", [3.0, -0.5])
def test_gradient_skip_starts_as_a_sign_step(form, inputs, skip):
    x, gradient = batch(2, 3, 8, 8)
    gradient[0, 0] = 0
    attacker = CNN(3, EPS, form=form, inputs=inputs, width=8, gradient_skip=skip)
    assert attacker.needs_gradient
    y = torch.randn_like(x)
    expected = y + EPS * math.tanh(skip) * gradient.sign()
    torch.testing.assert_close(attacker(y, gradient, x, None)[0], expected)


@each_form
def test_the_skip_along_the_gradient_is_normalised_like_the_networks_input(form):
    gradient = torch.randn(2, 3, 8, 8) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    zeros = torch.zeros_like(gradient)
    for normalize in ("sample", "batch"):
        settings = {"form": form, "width": 8, "normalize": normalize, "gradient_skip": 0.5}
        attacker = CNN(3, EPS, direction="max-abs", **settings)
        moved, _ = attacker(zeros, gradient, zeros, None)
        expected = EPS * torch.tanh(0.5 * max_abs(gradient, normalize))
        torch.testing.assert_close(moved, expected)


@each_form
def test_gradient_skip_adds_to_a_trained_network(form):
    x, gradient = batch(2, 1, 8, 8)
    attacker = CNN(1, EPS, form=form, width=8, gradient_skip=0.7)
    nn.init.normal_(attacker.network[-1].weight)
    features = torch.cat([x, gradient / gradient.abs().amax((1, 2, 3), keepdim=True)], 1)
    expected = EPS * torch.tanh(attacker.network(features) + 0.7 * gradient.sign())
    torch.testing.assert_close(move(attacker, x, gradient), expected)


@each_form
@pytest.mark.parametrize("skip", [None, 0.5])
def test_gradient_reaches_every_parameter(form, skip):
    x, gradient = batch(4, 1, 8, 8)
    attacker = CNN(1, 1.0, form=form, width=8, gradient_skip=skip)
    nn.init.normal_(attacker.network[-1].weight, std=0.01)
    # In training mode a bias in front of batch normalisation makes no difference; before there are
    # running means, the first PReLU sees no negative number.
    move(attacker, x, gradient)
    attacker.eval()
    move(attacker, x, gradient).square().sum().backward()
    for name, parameter in attacker.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@each_form
def test_training_leaves_the_start_of_the_skip(form):
    x, gradient = batch(4, 1, 8, 8)
    attacker = CNN(1, 1.0, form=form, width=8, gradient_skip=0.5)
    move(attacker, x, gradient).mean().backward()
    assert attacker.network[-1].weight.grad.abs().max() > 0
    assert attacker.gradient_skip.grad.abs() > 0


def test_gradient_reaches_y_through_the_context():
    """What makes the 2-step attacker's first step learn from the second."""
    x, gradient = batch(2, 1, 8, 8)
    y = torch.zeros_like(x, requires_grad=True)
    moved, _ = CNN(1, EPS, width=8)(y, gradient, x + y, None)
    (slope,) = torch.autograd.grad((moved - y).sum(), y)
    assert slope.abs().max() > 0


@each_form
def test_memory_format_makes_no_difference(form):
    x, gradient = batch(2, 3, 8, 8)
    attacker = CNN(3, EPS, form=form, width=8).eval()
    expected = move(attacker, x, gradient)
    channels_last = torch.channels_last
    attacker.to(memory_format=channels_last)
    delta = move(
        attacker, x.to(memory_format=channels_last), gradient.to(memory_format=channels_last)
    )
    assert delta.is_contiguous(memory_format=channels_last)
    torch.testing.assert_close(delta, expected)


@each_form
def test_float64_and_meta_device(form):
    x, gradient = batch(2, 1, 8, 8)
    attacker = CNN(1, EPS, form=form, width=8, gradient_skip=1.0)
    assert move(attacker.double(), x.double(), gradient.double()).dtype == torch.float64
    assert move(attacker.float().to("meta"), x.to("meta"), gradient.to("meta")).shape == x.shape


def test_is_one_graph():
    x, gradient = batch(2, 1, 8, 8)
    attacker = CNN(1, EPS, form="slim", width=4).eval()
    compiled = torch.compile(attacker, backend="eager", fullgraph=True)
    torch.testing.assert_close(move(compiled, x, gradient), move(attacker, x, gradient))


def test_state_passes_through():
    x, gradient = batch(2, 1, 8, 8)
    state = object()
    assert CNN(1, EPS, width=8)(x, gradient, x, state)[1] is state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels is 0.*give 1, 2"),
        ({"scale": 0.0}, "scale is 0.0.*above 0"),
        ({"scale": math.nan}, "scale is nan.*above 0"),
        ({"width": 0}, "width is 0.*give 1, 2"),
        ({"form": "deep"}, "form is 'deep'.*'wide', 'slim', 'slim-no-skip', 'two-layer'"),
        ({"inputs": ()}, r"inputs is \(\).*\('context', 'gradient'\)"),
        ({"inputs": "context"}, r"inputs is 'context'.*\('context',\)"),
        ({"normalize": "image"}, "normalize is 'image'.*'sample', 'batch'"),
        ({"direction": "l2"}, "direction is 'l2'.*'sign', 'max-abs'"),
        ({"gradient_skip": math.inf}, "gradient_skip is inf.*finite number, or None"),
    ],
)
def test_bad_argument_is_an_error(arguments, message):
    with pytest.raises(BilevelError, match=message):
        CNN(**{"channels": 3, "scale": EPS, **arguments})


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("y", "gradient", "context", "message"),
    [
        (X, X, None, "the context is None.*FollowerProblem.context.*inputs=.'gradient',."),
        (X, None, X, "the gradient is None.*needs_gradient"),
        (X, X, X[:, :1], r"context has shape \(2, 1, 4, 4\).*CNN\(channels=3\) reads 3 channels"),
        (X, X[:, :1], X, r"gradient has shape \(2, 1, 4, 4\).*CNN\(channels=3\)"),
        (X[:, :1], X, X, r"y has shape \(2, 1, 4, 4\).*give the channels"),
        (X[..., 0], X, X, r"y has shape \(2, 3, 4\)"),
        (X, X, X[:1], r"context has shape \(1, 3, 4, 4\): y has \(2, 3, 4, 4\).*same shape"),
        ({"w": X}, {"w": X}, X, "y is a dict.*use MLP or CoordinateRNN"),
    ],
)
@pytest.mark.parametrize("skip", [None, 1.0])
def test_bad_call_is_an_error(y, gradient, context, message, skip):
    with pytest.raises(BilevelError, match=message):
        CNN(3, EPS, width=4, gradient_skip=skip)(y, gradient, context, None)


def test_skip_of_a_naive_attacker_checks_its_gradient():
    with pytest.raises(BilevelError, match="the gradient is None"):
        CNN(3, EPS, inputs=CONTEXT, width=4, gradient_skip=1.0)(X, None, X, None)
