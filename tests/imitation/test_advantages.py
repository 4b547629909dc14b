"""Advantages: closed forms, and a plain loop over every episode."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bilevel import BilevelError
from bilevel.imitation import generalized_advantages

Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_parts(seed: int, steps: int = 12, envs: int = 3) -> Parts:
    generator = torch.Generator().manual_seed(seed)
    rewards, values, next_values = torch.randn(3, steps, envs, generator=generator).double()
    terminated, truncated = torch.rand(2, steps, envs, generator=generator) < 0.2
    return rewards, values, next_values, terminated, terminated | truncated


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_the_sum_over_each_episode(seed: int, discount: float, gae_lambda: float) -> None:
    """A_t = Σ_k (γλ)^k δ_{t+k} up to the episode's end, as eq. 16 is written."""
    rewards, values, next_values, terminated, ended = parts = random_parts(seed)
    advantages = generalized_advantages(*parts, discount=discount, gae_lambda=gae_lambda)
    for env in range(rewards.shape[1]):
        for t in range(len(rewards)):
            total = 0.0
            for k in range(t, len(rewards)):
                goes_on = 0.0 if terminated[k, env] else 1.0
                surprise = rewards[k, env] + discount * goes_on * next_values[k, env]
                total += (discount * gae_lambda) ** (k - t) * (surprise - values[k, env])
                if ended[k, env]:
                    break
            torch.testing.assert_close(advantages[t, env], torch.as_tensor(total).double())


def test_a_truncated_episode_keeps_the_value_of_its_last_state() -> None:
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    yes, no = torch.ones(1, 1).bool(), torch.zeros(1, 1).bool()
    truncated = generalized_advantages(zero, zero, one, no, yes, discount=0.5)
    terminated = generalized_advantages(zero, zero, one, yes, yes, discount=0.5)
    assert (truncated.item(), terminated.item()) == (0.5, 0.0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64])
def test_ends_may_be_numbers(dtype: torch.dtype) -> None:
    *rest, terminated, ended = parts = random_parts(0)
    numbers = generalized_advantages(*rest, terminated.to(dtype), ended.to(dtype))
    assert torch.equal(numbers, generalized_advantages(*parts))


def test_a_perfect_value_function_leaves_nothing_whatever_lambda() -> None:
    """Rewards of 1 for ever are worth 1/(1 − γ)."""
    worth = torch.full((20, 2), 10.0)
    never = torch.zeros(20, 2).bool()
    for gae_lambda in (0.0, 0.5, 1.0):
        parts = (torch.ones(20, 2), worth, worth, never, never)
        advantages = generalized_advantages(*parts, discount=0.9, gae_lambda=gae_lambda)
        torch.testing.assert_close(advantages, torch.zeros(20, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["discount", "gae_lambda"])
def test_factors_may_be_a_batch_of_tensors(name: str) -> None:
    parts, factors = random_parts(0), torch.tensor([0.0, 0.3, 0.9]).double()
    batch = torch.vmap(lambda factor: generalized_advantages(*parts, **{name: factor}))(factors)
    for advantages, factor in zip(batch, factors.tolist(), strict=True):
        expected = generalized_advantages(*parts, **{name: factor})
        torch.testing.assert_close(advantages, expected)


def test_what_is_no_advantage() -> None:
    parts = random_parts(0)
    with pytest.raises(BilevelError, match=r"discount is 1\.5"):
        generalized_advantages(*parts, discount=1.5)
    with pytest.raises(BilevelError, match=r"gae_lambda is -0\.1"):
        generalized_advantages(*parts, gae_lambda=-0.1)
    with pytest.raises(BilevelError, match="the parts have shapes"):
        generalized_advantages(parts[0][:3], *parts[1:])
