"""The attackers against the paper's tables, written out once more in plain functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bilevel.updates import CNN
from bilevel.updates.cnn import FORMS, ResBlock

EPS = 8 / 255
each_form = pytest.mark.parametrize("form", FORMS)


def batch(*shape):
    """Images and their gradients, of very different sizes."""
    sizes = 10.0 ** torch.arange(shape[0]).reshape(-1, 1, 1, 1)
    return torch.rand(shape), sizes * torch.randn(shape)


def move(attacker, x, gradient):
    """The step from y = 0."""
    return attacker(torch.zeros_like(x), gradient, x, None)[0]


def bn(x, weight=None, bias=None, eps=1e-5):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def stem(x, take, stride=1):
    """BN + ReLU behind a convolution without bias."""
    return bn(F.conv2d(x, take(), stride=stride, padding=1), take(), take(), eps=1e-3).relu()


def block(x, take):
    """Figure 9, channels changing."""
    h = F.conv2d(F.prelu(bn(x), take()), take(), take(), padding=1)
    h = F.conv2d(F.prelu(bn(h), take()), take(), take(), padding=1)
    return h + F.conv2d(x, take(), take())


def table_1(x, take):
    h = stem(x, take)
    for _ in range(4):
        h = block(h, take)
    return F.conv2d(bn(h), take(), take(), padding=1)


def table_5(x, take, skip):
    h = stem(x, take, stride=2)
    h = bn(block(block(h, take), take))
    h = F.conv_transpose2d(h, take(), stride=2, padding=1)
    h = bn(h, take(), take(), eps=1e-3).relu()[:, :, : x.shape[2], : x.shape[3]]
    h = torch.cat([h, x], 1) if skip else h
    gain, weight = take("gain"), take()
    return gain * F.conv2d(h, weight, padding=1)


def two_layer(x, take):
    return F.conv2d(stem(x, take), take(), take(), padding=1)


TABLES = {
    "wide": table_1,
    "slim": lambda x, take: table_5(x, take, skip=True),
    "slim-no-skip": lambda x, take: table_5(x, take, skip=False),
    "two-layer": two_layer,
}


def taker(attacker):
    """Hands out the parameters in the order of the layers; a block's PReLU before its conv."""
    named = dict(attacker.network.named_parameters())

    def take(suffix=None):
        name = next(name for name in named if suffix is None or name.endswith(suffix))
        return named.pop(name)

    return take, named


@each_form
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_network_is_the_table(form, size):
    x, gradient = batch(4, 3, *size)
    attacker = CNN(3, EPS, form=form, width=8)
    for parameter in attacker.parameters():
        nn.init.normal_(parameter, std=0.1)
    take, left = taker(attacker)
    features = torch.cat([x, gradient / gradient.abs().amax((1, 2, 3), keepdim=True)], 1)
    expected = EPS * torch.tanh(TABLES[form](features, take))
    torch.testing.assert_close(move(attacker, x, gradient), expected)
    assert not left


# (output, input, kernel height, kernel width) of each layer at width 64, by hand.
def block_shapes(inputs, outputs):
    first, second = (outputs, inputs, 3, 3), (outputs, outputs, 3, 3)
    return [first, second, (outputs, inputs, 1, 1)]


SLIM = [(128, 6, 3, 3), *block_shapes(128, 256), *block_shapes(256, 128), (128, 16, 4, 4)]
SHAPES = {
    "wide": [
        (64, 6, 3, 3),
        *block_shapes(64, 128),
        *block_shapes(128, 256),
        *block_shapes(256, 128),
        *block_shapes(128, 64),
        (3, 64, 3, 3),
    ],
    "slim": [*SLIM, (3, 16 + 6, 3, 3)],
    "slim-no-skip": [*SLIM, (3, 16, 3, 3)],
    "two-layer": [(64, 6, 3, 3), (3, 64, 3, 3)],
}
# Weights + biases + affine BN + PReLU slopes (+ gain).
PARAMETERS = {
    "wide": 1_745_984 + (2 * 3 * (128 + 256 + 128 + 64) // 2 + 3) + 128 + 8,
    "slim": (6_912 + 917_504 + 475_136 + 32_768 + 594) + 3 * (256 + 128) + (256 + 32) + 4 + 1,
    "slim-no-skip": (6_912 + 917_504 + 475_136 + 32_768 + 432) + 1_152 + 288 + 4 + 1,
    "two-layer": 3_456 + 1_728 + 3 + 128,
}
DOCUMENTED = {
    "wide": 1_747_851,
    "slim": 1_434_359,
    "slim-no-skip": 1_434_197,
    "two-layer": 5_315,
}


@each_form
def test_size_is_the_tables(form):
    parameters = list(CNN(3, EPS, form=form).parameters())
    assert [tuple(p.shape) for p in parameters if p.dim() == 4] == SHAPES[form]
    assert sum(p.numel() for p in parameters) == PARAMETERS[form] == DOCUMENTED[form]


@each_form
def test_width_scales_all_layers(form):
    parameters = CNN(3, EPS, form=form, width=16).parameters()
    convolutions = [tuple(p.shape) for p in parameters if p.dim() == 4]
    kept = {3, 6}  # of the images
    assert convolutions[:-1] == [
        (o // 4, i if i in kept else i // 4, *kernel) for o, i, *kernel in SHAPES[form][:-1]
    ]


def test_multiply_adds_of_the_wide_form():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        move(CNN(3, EPS).eval(), torch.empty(1, 3, 32, 32), torch.empty(1, 3, 32, 32))
    weights = 3_456 + 229_376 + 917_504 + 475_136 + 118_784 + 1_728
    multiply_adds = counter.get_total_flops() / 2
    assert multiply_adds == weights * 32 * 32 == 1_787_887_616
    wrn_34_10 = 432 * 1024 + 2_099_200 * 1024 + 8_806_400 * 256 + 35_225_600 * 64 + 6_400
    assert multiply_adds / wrn_34_10 == pytest.approx(0.27, abs=0.005)


def test_res_block_starts_xavier_uniform():
    block = ResBlock(32, 64)
    first, second = block.residual[2].weight, block.residual[5].weight
    for weight, gain, fans in [
        (first, math.sqrt(2), 9 * (32 + 64)),
        (second, math.sqrt(2), 9 * (64 + 64)),
        (block.shortcut.weight, 1, 32 + 64),
    ]:
        bound = gain * math.sqrt(6 / fans)
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_res_block_of_equal_channels_has_no_shortcut_parameters():
    x = torch.randn(2, 4, 3, 3)
    block = ResBlock(4, 4)
    nn.init.zeros_(block.residual[5].weight)
    nn.init.zeros_(block.residual[5].bias)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("form", ["slim", "slim-no-skip"])
def test_learned_factor_in_tanh_starts_at_five(form):
    assert dict(CNN(3, EPS, form=form, width=4).named_parameters())["network.1.gain"] == 5
