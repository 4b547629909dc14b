"""Policies and values: shapes, where they start, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bilevel import BilevelError
from bilevel.imitation import CategoricalPolicy, GaussianPolicy, Policy, Value, mlp

KINDS = [(CategoricalPolicy, ()), (GaussianPolicy, (3,))]


@pytest.mark.parametrize(("kind", "event"), KINDS)
def test_actions_have_the_shape_of_the_kind_and_their_log_probability(kind, event) -> None:
    policy, observations = kind(5, 3), torch.randn(7, 5)
    actions, log_probs = policy.act(observations)
    distribution = policy(observations)
    assert distribution.batch_shape == (7,)
    assert actions.shape == (7, *event)
    torch.testing.assert_close(log_probs, distribution.log_prob(actions))
    assert distribution.log_prob(actions).requires_grad
    assert not log_probs.requires_grad


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


def test_layers_are_orthogonal_with_their_gains() -> None:
    network = mlp([8, 6, 2], last_gain=0.01)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Tanh, nn.Linear]
    first, last = network[0].weight, network[2].weight
    torch.testing.assert_close(first @ first.T, 2 * torch.eye(6))
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(2))
    assert not network[0].bias.any()
    assert not network[2].bias.any()


def test_a_value_is_one_number_a_state() -> None:
    assert Value(4, hidden=(8,))(torch.randn(6, 4)).shape == (6,)


def test_sizes_may_come_from_numpy_as_those_of_a_space_do() -> None:
    assert CategoricalPolicy(4, np.int64(2)).act(torch.zeros(1, 4))[0].shape == (1,)


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
