"""`TRPO`: its two promises, problems that it solves, and bad input."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import kl_divergence

from bilevel import BilevelError, NonFiniteError
from bilevel.imitation import TRPO, CategoricalPolicy, GaussianPolicy
from tests.policies import KINDS, closure_of, make, same_bits, snapshot

# The two promises.


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    max_kl=st.floats(1e-4, 1.0),
    damping=st.sampled_from([0.0, 1e-3, 0.1]),
    spread=st.floats(0.0, 2.0),
)
def test_an_accepted_step_keeps_to_the_bound_and_lowers_the_loss(
    kind, seed, max_kl, damping, spread
) -> None:
    policy, states, loss = make(kind, seed=seed, spread=spread)
    optimizer = TRPO(policy, max_kl=max_kl, damping=damping, shrink=0.5)
    for _ in range(3):
        before, old, loss_before = snapshot(policy), copy.deepcopy(policy), loss().item()
        optimizer.step(closure_of(policy, loss))
        last = optimizer.last
        if last.accepted:
            with torch.no_grad():
                measured = kl_divergence(old(states), policy(states)).mean().item()
            assert measured == pytest.approx(last.kl, rel=1e-9, abs=1e-15)
            assert measured <= max_kl
            assert last.improvement > 0
            assert loss().item() == pytest.approx(loss_before - last.improvement)
        else:
            assert same_bits(policy, before)
            assert (last.kl, last.improvement) == (0, 0)


@pytest.mark.parametrize("sign_of_zero", [0.0, -0.0])
def test_a_step_that_cannot_improve_leaves_the_bits(sign_of_zero) -> None:
    """The gradient points uphill: no length of step lowers the loss."""
    policy, _, loss = make(CategoricalPolicy)
    with torch.no_grad():
        policy.network[0].bias.fill_(sign_of_zero)
    before, optimizer = snapshot(policy), TRPO(policy, max_kl=1e-3, damping=10.0, backtracks=4)
    calls = []

    def closure() -> Tensor:
        policy.zero_grad()
        value = loss()
        (-value).backward()
        calls.append(value)
        return value

    optimizer.step(closure)
    assert not optimizer.last.accepted
    assert optimizer.last.backtracks == 4
    assert len(calls) == 1 + 5  # the gradient, the full step and four shorter ones
    assert same_bits(policy, before)


@pytest.mark.parametrize("spoil", [lambda v: v * math.nan, lambda v: v * math.inf, lambda v: v * 0])
def test_a_loss_without_a_usable_gradient_gives_no_step(spoil) -> None:
    policy, _, loss = make(GaussianPolicy)
    before, optimizer = snapshot(policy), TRPO(policy)
    optimizer.step(closure_of(policy, lambda: spoil(loss())))
    assert not optimizer.last.accepted
    assert same_bits(policy, before)


def test_an_infinite_loss_is_not_improved_by_a_finite_one() -> None:
    policy, _, loss = make(CategoricalPolicy)
    before, optimizer, results = snapshot(policy), TRPO(policy), [math.inf]

    def closure() -> float:
        closure_of(policy, loss)()
        return results.pop() if results else 0.0

    optimizer.step(closure)
    assert not optimizer.last.accepted
    assert optimizer.last.residual < 0.1
    assert same_bits(policy, before)


def test_a_loss_that_stays_the_same_is_no_improvement() -> None:
    policy, _, loss = make(CategoricalPolicy)
    before, optimizer = snapshot(policy), TRPO(policy)

    def closure() -> float:
        closure_of(policy, loss)()
        return 1.0

    optimizer.step(closure)
    assert not optimizer.last.accepted
    assert optimizer.last.backtracks == 10
    assert same_bits(policy, before)


def test_a_gradient_that_is_not_finite_under_a_finite_loss_gives_no_step() -> None:
    policy, states, _ = make(CategoricalPolicy)
    before, optimizer = snapshot(policy), TRPO(policy)
    optimizer.step(closure_of(policy, lambda: (0 * policy(states).logits).sum().sqrt()))
    assert not optimizer.last.accepted
    assert same_bits(policy, before)


@pytest.mark.parametrize("error", [NonFiniteError("diverged"), RuntimeError("stopped")])
def test_a_closure_that_raises_at_a_trial_leaves_the_bits(error) -> None:
    policy, _, loss = make(CategoricalPolicy)
    before, optimizer, calls = snapshot(policy), TRPO(policy, backtracks=0), []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise error
        return closure_of(policy, loss)()

    if isinstance(error, NonFiniteError):  # what a game says: this trial is not to be taken
        optimizer.step(closure)
    else:
        with pytest.raises(RuntimeError, match="stopped"):
            optimizer.step(closure)
    assert len(calls) > 1
    assert not optimizer.last.accepted
    assert same_bits(policy, before)


@pytest.mark.parametrize("name", ["log_std", "network.0.weight"])
def test_frozen_parameters_are_left_alone(name) -> None:
    policy, _, loss = make(GaussianPolicy)
    policy.get_parameter(name).requires_grad_(False)
    before = copy.deepcopy(policy)
    optimizer = TRPO(policy)
    optimizer.step(closure_of(policy, loss))
    assert optimizer.last.accepted
    for other, parameter in policy.named_parameters():
        assert torch.equal(parameter, before.get_parameter(other)) == (other == name)


def test_gradients_of_a_layer_that_is_unfrozen_later_do_not_add_up() -> None:
    """The steps are those of an optimizer that was made with the layer."""
    ends = []
    for frozen in (True, False):
        policy, _, loss = make(GaussianPolicy)
        policy.log_std.requires_grad_(not frozen)
        optimizer = TRPO(policy)
        policy.log_std.requires_grad_(True)

        def closure(optimizer: TRPO = optimizer, loss: Callable[[], Tensor] = loss) -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        for _ in range(3):
            optimizer.step(closure)
        ends.append(snapshot(policy))
    assert all(map(torch.equal, *ends))


def test_the_states_are_those_of_the_loss_whatever_is_evaluated_without_gradients() -> None:
    policy, states, loss = make(CategoricalPolicy)

    def with_a_rollout() -> Tensor:
        policy.act(100 * states)
        return loss()

    optimizer, twin = TRPO(policy), copy.deepcopy(policy)
    optimizer.step(closure_of(policy, with_a_rollout))
    with torch.no_grad():
        measured = kl_divergence(twin(states), policy(states)).mean().item()
    assert optimizer.last.kl == pytest.approx(measured)
    assert not policy._forward_hooks


# Problems that it solves.


def test_a_contextual_bandit_is_solved() -> None:
    """Three states, each with its own best arm."""
    policy, states = CategoricalPolicy(3, 3), torch.eye(3)
    optimizer = TRPO(policy, max_kl=0.05)
    best = torch.tensor([2, 0, 1])

    def loss() -> Tensor:
        return -policy(states).probs.gather(1, best.unsqueeze(1)).mean()

    for _ in range(30):
        optimizer.step(closure_of(policy, loss))
    assert loss().item() < -0.97


def test_a_gaussian_finds_the_action_that_pays_from_samples() -> None:
    """Reward −(a − s)²: μ(s) = s, and the spread shrinks."""
    policy = GaussianPolicy(1, 1, hidden=(16,))
    optimizer = TRPO(policy, max_kl=0.02)
    for _ in range(60):
        states = torch.rand(512, 1) * 2 - 1
        actions = policy.act(states)
        old = policy(states).log_prob(actions).detach()
        reward = -(actions - states).square().sum(1)
        advantages = (reward - reward.mean()) / reward.std()

        def loss(s=states, a=actions, old=old, advantages=advantages) -> Tensor:
            return -((policy(s).log_prob(a) - old).exp() * advantages).mean()

        optimizer.step(closure_of(policy, loss))
    states = torch.linspace(-1, 1, 21).unsqueeze(1)
    assert (policy(states).mean - states).abs().max() < 0.25
    assert policy.log_std.exp().item() < 0.4


def test_its_state_carries_the_settings() -> None:
    policy = CategoricalPolicy(1, 2)
    optimizer = TRPO(policy)
    optimizer.load_state_dict(TRPO(policy, max_kl=0.5, cg_steps=3).state_dict())
    assert (optimizer.param_groups[0]["max_kl"], optimizer.param_groups[0]["cg_steps"]) == (0.5, 3)


# Bad input.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_kl", 0.0),
        ("max_kl", math.nan),
        ("max_kl", math.inf),
        ("damping", -1e-3),
        ("cg_steps", 0),
        ("backtracks", -1),
        ("shrink", 1.0),
        ("shrink", 0.0),
    ],
)
def test_settings_out_of_range_are_named(name, value) -> None:
    with pytest.raises(BilevelError, match=f"^{name} is {value}: .*; give "):
        TRPO(CategoricalPolicy(1, 2), **{name: value})


def test_a_policy_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(BilevelError, match="no parameter that requires gradients"):
        TRPO(CategoricalPolicy(1, 2).requires_grad_(False))


@pytest.mark.parametrize("times", [0, 2])
def test_a_loss_that_does_not_evaluate_the_policy_once_is_refused(times) -> None:
    policy, states, accepted = make(CategoricalPolicy)
    optimizer = TRPO(policy)
    optimizer.step(closure_of(policy, accepted))
    assert optimizer.last.accepted
    before = snapshot(policy)

    def loss() -> Tensor:
        terms = [policy(states).entropy().mean() for _ in range(times)]
        return sum(terms, policy.network[0].weight.sum())

    with pytest.raises(BilevelError, match=f"evaluated the policy {times} times"):
        optimizer.step(closure_of(policy, loss))
    assert not optimizer.last.accepted
    assert same_bits(policy, before)
    assert not policy._forward_hooks


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(1)])
def test_a_policy_that_is_not_deterministic_is_refused(layer: nn.Module) -> None:
    policy, states = CategoricalPolicy(1, 2, hidden=(), inputs=layer), torch.randn(8, 1)
    optimizer = TRPO(policy)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -policy(states).probs[:, 0].mean()
        loss.backward()
        return loss

    told = f"network.0, a {type(layer).__name__}, is in training mode: .*call policy.eval"
    with pytest.raises(BilevelError, match=told):
        optimizer.step(closure)
    policy.eval()
    optimizer.step(closure)
    assert optimizer.last.accepted
