"""Values: fitted fast whatever their size, without a jump."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bilevel.imitation import Rollout, Value


def test_a_value_is_one_number_a_state() -> None:
    assert Value(4, hidden=(8,))(torch.randn(6, 4)).shape == (6,)
    assert Value(4)(torch.randn(5, 6, 4)).shape == (5, 6)


@pytest.mark.parametrize("size", [1e-2, 1.0, 1500.0])
def test_returns_of_any_size_are_learned_in_the_same_time(size: float) -> None:
    torch.manual_seed(0)
    states = torch.rand(2000, 2)
    returns = -size * (1 + states[:, 0] * states[:, 1])
    value = Value(2)
    optimizer = torch.optim.Adam(value.parameters(), lr=1e-3)
    explained = [value.fit(optimizer, states, returns).item() for _ in range(30)]
    assert explained[0] < 0.5
    assert explained[-1] > 0.85


def test_stretching_moves_no_value() -> None:
    value, states = Value(2), torch.randn(50, 2)
    before = value(states)
    still = torch.optim.SGD(value.parameters(), lr=0.0)
    value.fit(still, states, torch.full((50,), -300.0) + torch.randn(50))
    torch.testing.assert_close(value(states), before)
    assert value.scale.item() == pytest.approx(300, rel=0.01)
    assert "scale" in value.state_dict()


def test_advantage_and_value_make_the_return() -> None:
    """For λ = 1: rewards of the rollout, and what the last state is worth."""
    value = Value(1)
    nn.init.ones_(value.network[-1].weight)
    states, never = torch.randn(5, 2, 1), torch.zeros(4, 2).bool()
    zero = torch.zeros(4, 2)
    rollout = Rollout(states[:-1], zero, zero, states[1:], zero, never, never, torch.zeros(0))
    rewards = torch.randn(4, 2)
    advantages, returns = value.advantages_and_returns(
        rollout, rewards, discount=0.9, gae_lambda=1.0
    )
    expected = value(states[-1]).detach()
    for t in reversed(range(4)):
        expected = rewards[t] + 0.9 * expected
        torch.testing.assert_close(returns[t], expected)
        torch.testing.assert_close(advantages[t], expected - value(states[t]).detach())


def test_without_lambda_the_return_is_a_reward_and_the_next_value() -> None:
    value = Value(1)
    nn.init.ones_(value.network[-1].weight)
    states, never = torch.randn(5, 2, 1), torch.zeros(4, 2).bool()
    zero, rewards = torch.zeros(4, 2), torch.randn(4, 2)
    rollout = Rollout(states[:-1], zero, zero, states[1:], zero, never, never, torch.zeros(0))
    _, returns = value.advantages_and_returns(rollout, rewards, discount=0.9, gae_lambda=0.0)
    torch.testing.assert_close(returns, rewards + 0.9 * value(states[1:]).detach())


def test_the_explained_variance_is_of_the_deviations_from_the_mean() -> None:
    value, states = Value(1, hidden=()), torch.randn(200, 1)
    still, returns = torch.optim.SGD(value.parameters(), lr=0.0), 3 * states[:, 0] + 50
    nn.init.constant_(value.network[0].weight, 3.0)
    assert value.fit(still, states, returns).item() == pytest.approx(1, abs=1e-4)
    nn.init.zeros_(value.network[0].weight)
    assert value.fit(still, states, returns).item() == pytest.approx(0, abs=1e-4)


def test_each_epoch_of_a_fit_takes_a_step_a_batch() -> None:
    value, sizes = Value(2), []

    def note(_, inputs, __) -> None:
        if torch.is_grad_enabled():
            sizes.append(len(inputs[0]))

    value.network.register_forward_hook(note)
    optimizer = torch.optim.Adam(value.parameters())
    value.fit(optimizer, torch.randn(7, 2), torch.randn(7), epochs=2, batch_size=3)
    assert sizes == [3, 3, 1, 3, 3, 1]


def test_returns_that_are_all_zero_leave_values_finite() -> None:
    value, states = Value(2), torch.randn(50, 2)
    value.fit(torch.optim.Adam(value.parameters()), states, torch.zeros(50))
    assert value(states).isfinite().all()
