"""Hand-designed updates against the formulas they are named after."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bilevel.errors import BilevelError
from bilevel.updates import Gradient, Momentum, NormalizedGradient, SignGradient, Update

STEPS = [Gradient, SignGradient, NormalizedGradient]
Y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
G = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
MOVES = {
    Gradient: torch.tensor([[1.5, -2.0], [0.0, 0.0]]),
    SignGradient: torch.tensor([[0.5, -0.5], [0.0, 0.0]]),
    NormalizedGradient: torch.tensor([[0.3, -0.4], [0.0, 0.0]]),
}


@pytest.mark.parametrize("kind", STEPS)
def test_tensor_moves_by_the_formula(kind):
    y, _ = kind(0.5)(Y, G, None, None)
    torch.testing.assert_close(y, Y + MOVES[kind])


@pytest.mark.parametrize("kind", STEPS)
def test_dict_moves_by_the_formula(kind):
    gradient = {"b": G[:1, 1:], "a": G[:1, :1]}  # named in another order than y
    y, _ = kind(0.5)({"a": Y[:1, :1], "b": Y[:1, 1:]}, gradient, None, None)
    torch.testing.assert_close(torch.cat([y["a"], y["b"]], dim=1), Y[:1] + MOVES[kind][:1])


@pytest.mark.parametrize("kind", STEPS)
def test_leaves_its_input_and_the_state_alone(kind):
    state, y = object(), Y.clone()
    update = kind(0.5)
    assert update(y, G, None, state)[1] is state
    assert torch.equal(y, Y)
    assert update.needs_gradient
    assert not list(update.parameters())


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("step", [0, -1.0, math.inf, math.nan])
def test_step_out_of_range_is_an_error(kind, step):
    with pytest.raises(BilevelError, match=f"step is {step}.*give a step above 0"):
        kind(step)


def test_step_of_normalized_gradient_has_its_length_however_small_the_gradient():
    y, _ = NormalizedGradient(0.25)(
        torch.zeros(1, 3, 4, 4), 1e-30 * torch.randn(1, 3, 4, 4), None, None
    )
    assert y.norm().item() == pytest.approx(0.25)


@pytest.mark.parametrize("update", [*STEPS, lambda step: Momentum(SignGradient(step), 1.0)])
def test_missing_gradient_is_an_error(update):
    with pytest.raises(BilevelError, match=r"the gradient is None.*needs_gradient"):
        update(1.0)(Y, None, None, None)


def test_momentum_is_mi_fgsm():
    """Dong et al. (2018), Algorithm 1 without the clipping, in numpy."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 2, 3)) * 10.0 ** rng.integers(-6, 6, size=(5, 2, 1))
    expected, moment = np.zeros((2, 3)), np.zeros((2, 3))
    update, y, state = Momentum(SignGradient(0.1), 0.9, normalize=True), torch.zeros(2, 3), None
    for g in gradients:
        moment = 0.9 * moment + g / np.abs(g).sum(axis=1, keepdims=True)
        expected = expected + 0.1 * np.sign(moment)
        y, state = update(y, torch.from_numpy(g).float(), None, state)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(state[0].numpy(), moment, rtol=1e-5)


def test_momentum_may_grow():
    update, y, state = Momentum(Gradient(1.0), 2.0), torch.zeros(1), None
    for _ in range(2):
        y, state = update(y, torch.ones(1), None, state)
    assert y.item() == 1 + 3


def test_momentum_sums_a_dict_geometrically():
    update, y, state = Momentum(Gradient(1.0), 0.5), {"w": torch.zeros(2)}, None
    for _ in range(3):
        y, state = update(y, {"w": torch.tensor([1.0, -2.0])}, None, state)
    assert state[0]["w"].tolist() == [1.75, -3.5]  # 1 + 1/2 + 1/4
    assert y["w"].tolist() == [4.25, -8.5]  # 1 + 1.5 + 1.75


def test_momentum_without_memory_is_the_other_update():
    update = Momentum(Gradient(0.5), 0.0)
    _, state = update(Y, -G, None, None)
    assert torch.equal(update(Y, G, None, state)[0], Gradient(0.5)(Y, G, None, None)[0])


def test_momentum_hands_the_context_and_its_own_state_to_the_other_update():
    class Count(Update):
        def forward(self, y, gradient, context, state):
            return y + context, (state or 0) + 1

    update = Momentum(Count(), 1.0)
    y, state = update(Y, G, torch.ones(2, 2), None)
    y, state = update(y, G, torch.ones(2, 2), state)
    assert state[1] == 2
    torch.testing.assert_close(y, Y + 2)


@pytest.mark.parametrize("decay", [-0.1, math.inf, math.nan])
def test_decay_out_of_range_is_an_error(decay):
    with pytest.raises(BilevelError, match=f"decay is {decay}"):
        Momentum(Gradient(1.0), decay)


@pytest.mark.parametrize(
    "update",
    [*(kind(0.5) for kind in STEPS), Momentum(SignGradient(0.5), 1.0, normalize=True)],
    ids=lambda update: type(update).__name__,
)
def test_is_one_graph_without_synchronisation(update):
    def two_steps(y, gradient):
        y, state = update(y, gradient, None, None)
        return update(y, gradient, None, state)[0]

    expected = two_steps(Y, G)
    torch.testing.assert_close(
        torch.compile(two_steps, backend="eager", fullgraph=True)(Y, G), expected
    )
    mapped = torch.func.vmap(two_steps)(torch.stack([Y, Y]), torch.stack([G, -G]))
    torch.testing.assert_close(mapped, torch.stack([expected, 2 * Y - expected]))
    assert two_steps(Y.to("meta"), G.to("meta")).shape == Y.shape


def test_momentum_reads_what_its_update_reads() -> None:
    momentum = Momentum(SignGradient(1.0), 1.0)
    assert not momentum.differentiable
    assert not momentum.needs_context
