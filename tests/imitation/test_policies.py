"""Policies and values: shapes, where they start, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, ExpTransform, TransformedDistribution

from bilevel import BilevelError
from bilevel.imitation import (
    CategoricalPolicy,
    GaussianPolicy,
    Policy,
    Standardize,
    Task,
    Value,
    mlp,
)

KINDS = [(CategoricalPolicy, ()), (GaussianPolicy, (3,))]


@pytest.mark.parametrize(("kind", "event"), KINDS)
def test_actions_have_the_shape_of_the_kind_and_their_log_probability(kind, event) -> None:
    policy, observations = kind(5, 3), torch.randn(7, 5)
    actions = policy.act(observations)
    distribution = policy(observations)
    assert distribution.batch_shape == (7,)
    assert actions.shape == (7, *event)
    assert distribution.log_prob(actions).requires_grad
    assert not actions.requires_grad


@pytest.mark.parametrize(("kind", "event"), KINDS)
def test_a_new_policy_hardly_looks_at_the_state(kind, event) -> None:
    distribution = kind(5, 3)(10 * torch.randn(64, 5))
    if event:
        assert distribution.mean.abs().max() < 0.1
        torch.testing.assert_close(distribution.stddev, torch.ones(64, 3))
    else:
        torch.testing.assert_close(
            distribution.probs, torch.full((64, 3), 1 / 3), atol=0.02, rtol=0
        )


class Cold(CategoricalPolicy):
    """With a temperature of its own: the first action nearly always."""

    def forward(self, observations):
        return Categorical(logits=self.network(observations) + torch.tensor([8.0, 0.0]))


class Positive(GaussianPolicy):
    """Its actions are positive: the exponentials of a Gaussian policy's."""

    def forward(self, observations):
        exp = [ExpTransform()]
        return TransformedDistribution(super().forward(observations), exp)


class Halved(CategoricalPolicy):
    """With a layer that numpy does not evaluate."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.network.append(nn.Softplus())


class Residual(CategoricalPolicy):
    """With a network that adds to its last layer."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.network = Favouring(*self.network)


class Favouring(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + torch.tensor([0.0, -torch.inf])


@pytest.mark.parametrize(
    ("policy", "holds"),
    [
        (Cold(4, 2), lambda actions: (actions == 0).mean() > 0.95),
        (Positive(4, 2), lambda actions: (actions > 0).all()),
        (Halved(), lambda actions: (actions == 0).any() and (actions == 1).any()),
        (Residual(), lambda actions: (actions == 0).all()),
    ],
    ids=["cold", "positive", "halved", "residual"],
)
def test_rollouts_sample_from_the_distribution_of_a_subclass(policy, holds) -> None:
    assert holds(policy.actor()(np.zeros((200, 4), dtype=np.float32)))


class Best(CategoricalPolicy):
    """Takes the likeliest action."""

    @torch.no_grad()
    def act(self, observations):
        return self(observations).probs.argmax(-1)


class Mean(GaussianPolicy):
    """Takes the mean action."""

    @torch.no_grad()
    def act(self, observations):
        return self(observations).mean


def of_an_instance() -> CategoricalPolicy:
    policy = CategoricalPolicy(4, 2)
    policy.act = lambda observations: policy(observations).probs.argmax(-1)
    return policy


@pytest.mark.parametrize("policy", [Best(4, 2), Mean(4, 2), of_an_instance()])
def test_rollouts_act_as_the_policy_does(policy) -> None:
    states = torch.randn(200, 4)
    assert (policy.actor()(states.numpy()) == policy.act(states).numpy()).all()


def only_first(module: nn.Module, _, output) -> object:
    """A forward hook: the first action alone is left."""
    whole = isinstance(output, Categorical)
    logits = (output.logits if whole else output) + torch.tensor([0.0, -torch.inf])
    return Categorical(logits=logits) if whole else logits


@pytest.mark.parametrize(
    "of",
    [lambda p: p, lambda p: p.network, lambda p: p.network[-1]],
    ids=["policy", "network", "layer"],
)
def test_rollouts_know_the_hooks_of_a_policy(of) -> None:
    policy = CategoricalPolicy(4, 2)
    of(policy).register_forward_hook(only_first)
    assert (policy.actor()(np.zeros((200, 4), np.float32)) == 0).all()


def test_the_spread_is_the_same_in_every_state_and_is_learned() -> None:
    policy = GaussianPolicy(2, 3)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([0.0, 0.5, -1.0]))
    stddev = policy(torch.randn(4, 2)).stddev
    torch.testing.assert_close(stddev, policy.log_std.exp().expand(4, 3))
    stddev.sum().backward()
    assert policy.log_std.grad is not None


def test_the_log_probability_of_a_vector_is_the_normal_density() -> None:
    distribution = GaussianPolicy(2, 3)(torch.zeros(1, 2))  # standard normal: all biases are zero
    assert distribution.log_prob(torch.zeros(1, 3)).item() == pytest.approx(
        -1.5 * math.log(2 * math.pi)
    )


@pytest.mark.parametrize(("kind", "event"), KINDS)
def test_a_player_draws_from_the_policys_distribution(kind, event) -> None:
    """By numpy and another formula: shares, or means and spreads, within four standard errors."""
    torch.manual_seed(0)
    policy = kind(2, 3, inputs=Standardize(torch.randn(50, 2) * 3 + 1))
    with torch.no_grad():
        policy.network[-1].weight.mul_(100)
        if event:
            policy.log_std.copy_(torch.tensor([0.0, 0.5, -1.0]))
    state, draws = torch.tensor([[0.5, -2.0]]), 40_000
    drawn = torch.as_tensor(policy.actor()(state.expand(draws, 2).numpy()))
    distribution = policy(state)
    assert drawn.shape == (draws, *event)
    if event:
        error = (drawn.mean(0) - distribution.mean[0]) / distribution.stddev[0] * draws**0.5
        torch.testing.assert_close(drawn.std(0), distribution.stddev[0], rtol=0.03, atol=0)
    else:
        probs = distribution.probs[0]
        shares = torch.bincount(drawn, minlength=3) / draws
        error = (shares - probs) / (probs * (1 - probs) / draws).sqrt()
    assert error.abs().max() < 4


@pytest.mark.parametrize(("kind", "event"), KINDS)
def test_two_players_draw_numbers_of_their_own(kind, event) -> None:
    policy, states = kind(2, 3), np.zeros((64, 2), np.float32)
    assert (policy.actor()(states) != policy.actor()(states)).any()


def test_a_player_follows_torchs_seed_and_keeps_the_policy_that_it_was() -> None:
    policy, states = CategoricalPolicy(2, 3), torch.randn(64, 2).numpy()
    torch.manual_seed(1)
    actor = policy.actor()
    first = actor(states)
    torch.manual_seed(1)
    actor = policy.actor()
    with torch.no_grad():
        policy.network[-1].bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
    assert (actor(states) == first).all()
    assert (policy.actor()(states) == 0).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda **inputs: CategoricalPolicy(2, 3, **inputs),
        lambda **inputs: GaussianPolicy(2, 3, **inputs),
        lambda **inputs: Value(2, **inputs),
        lambda **inputs: Task("any", 2, 3, discrete=True).policy(**inputs),
    ],
)
def test_the_network_sees_what_the_inputs_make_of_a_state(build) -> None:
    scale, states = Standardize(torch.randn(50, 2) * 3 + 1), torch.randn(7, 2)
    whole, plain = build(inputs=scale), build()
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(whole.parameters()), plain.parameters()
    )
    torch.testing.assert_close(whole.network(states), plain.network(scale(states)))


def test_sizes_may_come_from_numpy_as_those_of_a_space_do() -> None:
    assert CategoricalPolicy(4, np.int64(2)).act(torch.zeros(1, 4)).shape == (1,)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CategoricalPolicy(0, 2),
        lambda: CategoricalPolicy(4, -1),
        lambda: GaussianPolicy(4, 2, hidden=(0,)),
        lambda: GaussianPolicy(2.5, 2),
        lambda: Value(4, hidden=(8, 0)),
        lambda: mlp([4]),
    ],
)
def test_bad_sizes_are_told_in_one_line(build) -> None:
    with pytest.raises(BilevelError, match="network's sizes") as error:
        build()
    assert "\n" not in str(error.value)


def test_a_policy_without_a_distribution_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Policy().act(torch.zeros(1, 1))
