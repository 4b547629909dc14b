"""The parameter updater against section 5.2 of the paper, written out with matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bilevel.errors import BilevelError
from bilevel.updates import MLP, CoordinateMLP

M = 5


def problem(dtype=torch.float32):
    y = {"weight": torch.randn(2, 2, dtype=dtype), "bias": torch.randn(1, dtype=dtype)}
    return y, {name: torch.randn_like(leaf) for name, leaf in y.items()}


def row(y):
    return torch.cat([y["weight"].flatten(), y["bias"]])


@pytest.mark.parametrize("skip", [None, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_its_formula(skip, dtype):
    y, gradient = problem(dtype)
    updater = MLP(M, gradient_skip=skip).to(dtype)
    nn.init.normal_(updater.network[-1].weight)
    w1, b1, a1, w2, b2, a2, w3, b3 = (
        p.squeeze(-1) if p.dim() == 3 else p for p in updater.network.parameters()
    )
    prelu = lambda h, a: torch.where(h > 0, h, a * h)  # noqa: E731
    h = prelu(w1 @ torch.cat([row(y), row(gradient)]) + b1, a1)
    move = w3 @ prelu(w2 @ h + b2, a2) + b3
    moved, _ = updater(y, gradient, None, None)
    assert list(moved) == ["weight", "bias"]
    assert [leaf.shape for leaf in moved.values()] == [(2, 2), (1,)]
    expected = row(y) + move + (skip or 0) * row(gradient)
    torch.testing.assert_close(row(moved), expected)


def test_size_is_the_papers():
    shapes = [tuple(p.shape[:2]) for p in MLP(3).parameters() if p.dim() == 3]
    assert shapes == [(24, 6), (12, 24), (3, 12)]  # 2m → 8m → 4m → m
    assert sum(p.numel() for p in MLP(3).parameters()) == 52 * 3**2 + 13 * 3 + 2 == 509
    with torch.device("meta"):
        assert sum(p.numel() for p in MLP(2_561).parameters()) == 341_086_787


def test_moves_a_tensor_as_it_moves_its_numbers():
    y, gradient = problem()
    updater = MLP(M)
    tensor = row(y).reshape(1, M)
    moved, _ = updater(tensor, row(gradient).reshape(1, M), None, None)
    assert moved.shape == (1, M)
    torch.testing.assert_close(moved[0], row(updater(y, gradient, None, None)[0]))


def test_tensors_of_several_types_keep_them():
    y, gradient = problem()
    y["weight"], gradient["weight"] = y["weight"].bfloat16(), gradient["weight"].bfloat16()
    moved, _ = MLP(M)(y, gradient, None, None)
    assert {name: leaf.dtype for name, leaf in moved.items()} == {
        "weight": torch.bfloat16,
        "bias": torch.float32,
    }


def test_gradient_is_matched_by_name():
    y, gradient = problem()
    updater = MLP(M, gradient_skip=1.0)
    nn.init.normal_(updater.network[-1].weight)
    reordered = dict(reversed(gradient.items()))
    assert list(reordered) == ["bias", "weight"]
    expected = updater(y, gradient, None, None)[0]
    torch.testing.assert_close(updater(y, reordered, None, None)[0], expected)


def test_gradient_skip_starts_as_gradient_ascent():
    y, gradient = problem()
    moved, _ = MLP(M, gradient_skip=0.25)(y, gradient, None, None)
    torch.testing.assert_close(row(moved), row(y) + 0.25 * row(gradient))


@pytest.mark.parametrize("skip", [None, 0.25])
def test_gradient_reaches_every_parameter_and_y(skip):
    y, gradient = problem()
    y["weight"].requires_grad_()
    updater = MLP(M, gradient_skip=skip)
    nn.init.normal_(updater.network[-1].weight)
    moved, _ = updater(y, gradient, None, None)
    (row(moved) - row(y)).square().sum().backward()
    for name, parameter in updater.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert y["weight"].grad.abs().max() > 0  # through the network, not only past it


def test_is_twice_differentiable():
    updater = MLP(2, gradient_skip=0.5).double()
    nn.init.normal_(updater.network[-1].weight)
    parameters = dict(updater.named_parameters())

    def moved(y, gradient, *values):
        weights = dict(zip(parameters, values, strict=True))
        return functional_call(updater, weights, (y, gradient, None, None))[0]

    y, gradient = torch.randn(2, 2, dtype=torch.float64, requires_grad=True).unbind()
    inputs = (y, gradient, *parameters.values())
    assert torch.autograd.gradcheck(moved, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(moved, inputs, fast_mode=True)


def test_is_one_graph_without_synchronisation():
    y, gradient = problem()
    updater = MLP(M)
    compiled = torch.compile(updater, backend="eager", fullgraph=True)
    expected = updater(y, gradient, None, None)[0]
    torch.testing.assert_close(compiled(y, gradient, None, None)[0], expected)
    stacked = [
        {name: torch.stack([leaf] * 2) for name, leaf in tree.items()} for tree in (y, gradient)
    ]
    mapped = torch.func.vmap(lambda y, g: updater(y, g, None, None)[0])(*stacked)
    torch.testing.assert_close(row({name: leaf[1] for name, leaf in mapped.items()}), row(expected))
    meta = [{name: leaf.to("meta") for name, leaf in tree.items()} for tree in (y, gradient)]
    assert updater.to("meta")(*meta, None, None)[0]["weight"].shape == (2, 2)


def test_state_passes_through():
    state = object()
    assert MLP(M)(*problem(), None, state)[1] is state


def test_bad_input_is_an_error():
    y, gradient = problem()
    with pytest.raises(BilevelError, match=r"y has 5 elements: MLP\(size=4\).*give MLP\(size=5\)"):
        MLP(4)(y, gradient, None, None)
    rows = torch.zeros(5, 3)
    with pytest.raises(BilevelError, match=r"shape \(5, 3\): .*whole batch; .*CoordinateMLP"):
        MLP(3)(rows, rows, None, None)
    with pytest.raises(BilevelError, match="the gradient is None"):
        MLP(M)(y, None, None, None)
    with pytest.raises(BilevelError, match="size is 0"):
        MLP(0)


def test_a_block_moves_as_an_updater_of_its_own():
    """Seven numbers in three blocks of three, the last filled up with zeros."""
    y, gradient = torch.randn(2, 7)
    updater = MLP(7, blocks=3)
    moved, _ = updater(y, gradient, None, None)
    alone = MLP(3)
    for block in range(3):
        for mine, all_of_them in zip(alone.parameters(), updater.parameters(), strict=True):
            rows = len(mine)
            chosen = all_of_them if mine.dim() == 1 and rows == 1 else all_of_them.chunk(3)[block]
            mine.data.copy_(chosen.data)
        part = slice(3 * block, min(3 * block + 3, 7))
        inputs = (torch.nn.functional.pad(v[part], (0, 3 - len(v[part]))) for v in (y, gradient))
        expected, _ = alone(*inputs, None, None)
        torch.testing.assert_close(moved[part], expected[: len(moved[part])])


def test_blocks_divide_the_memory():
    dense, cut = (sum(p.numel() for p in MLP(32, blocks=k).parameters()) for k in (1, 4))
    assert (dense - 13 * 32 - 2) / (cut - 13 * 32 - 2) == 4
    with pytest.raises(BilevelError, match="blocks is 0"):
        MLP(3, blocks=0)


def test_a_coordinate_moves_by_its_own_features():
    y, gradient = problem(torch.float64)
    updater = CoordinateMLP(scale=0.5, gradient_skip=0.25).double()
    nn.init.normal_(updater.network[-1].weight)
    slope = row(gradient)
    relative = slope / slope.square().mean().sqrt()
    features = torch.stack([row(y), relative, slope.sign(), relative.abs().log()], 1)
    expected = row(y) + 0.5 * updater.network(features).squeeze(1) + 0.25 * slope
    torch.testing.assert_close(row(updater(y, gradient, None, None)[0]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coordinates_start_at_the_skip_and_a_zero_gradient_is_no_trouble(dtype):
    y, gradient = problem(dtype)
    updater = CoordinateMLP().to(dtype)
    assert sum(p.numel() for p in updater.parameters()) == 707
    torch.testing.assert_close(row(updater(y, gradient, None, None)[0]), row(y))
    nn.init.normal_(updater.network[-1].weight)
    still = torch.zeros(4, dtype=dtype, requires_grad=True)
    moved, _ = updater(still, torch.zeros(4, dtype=dtype), None, None)
    moved.sum().backward()
    assert moved.isfinite().all()
    assert all(p.grad.isfinite().all() for p in updater.parameters())


def test_a_coordinate_does_not_depend_on_its_samples_batch_mates():
    y, gradient = torch.randn(2, 3, 4)
    updater = CoordinateMLP()
    nn.init.normal_(updater.network[-1].weight)
    together, _ = updater(y, gradient, None, None)
    others = torch.cat([gradient[:1], 100 * gradient[1:]])
    torch.testing.assert_close(updater(y, others, None, None)[0][0], together[0])
    alone = [updater(a[None], b[None], None, None)[0] for a, b in zip(y, gradient, strict=True)]
    torch.testing.assert_close(torch.cat(alone), together)


def test_the_step_does_not_depend_on_the_objectives_scale():
    y, gradient = problem()
    updater = CoordinateMLP()
    nn.init.normal_(updater.network[-1].weight)
    moved, _ = updater(y, gradient, None, None)
    scaled, _ = updater(y, {name: 1000 * leaf for name, leaf in gradient.items()}, None, None)
    torch.testing.assert_close(row(scaled), row(moved))


def test_logarithms_of_gradients_that_are_small_beside_others() -> None:
    update, seen = CoordinateMLP(), []
    update.network[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    update(torch.zeros(1, 2), torch.tensor([[1.0, 1e-6]]), None, None)
    expected = math.log(2**0.5 * 1e-6)  # relative to the root mean square
    assert seen[0].reshape(2, 4)[1, 3].item() == pytest.approx(expected, rel=1e-4)
