"""Experts: TRPO solves CartPole, from its own rewards."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from bilevel.imitation import Sampler, Value, demonstrate, train_expert


def test_trpo_balances_the_pole() -> None:
    """At least 490 within 40 iterations of 5,000 steps; here 15 are enough."""
    best: list[float] = []
    policy = train_expert(
        "CartPole-v1", 15, callback=lambda _, returns: best.append(float(returns.mean()))
    )
    assert max(best) >= 490
    assert demonstrate("CartPole-v1", policy, 20, seed=5).returns.mean() >= 400
    assert torch.tensor(best[:2]).max() < 60  # it did not start there


def test_runs_of_other_seeds_share_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """N environments take the seeds s, s + 1 and so on."""
    begun: list[torch.Tensor] = []
    collect = Sampler.collect

    def listen(sampler: Sampler, steps: int):
        rollout = collect(sampler, steps)
        begun.append(rollout.observations[0])
        return rollout

    monkeypatch.setattr(Sampler, "collect", listen)
    for seed in (0, 1):
        train_expert("CartPole-v1", 1, steps=64, environments=4, seed=seed)
    assert len(torch.cat(begun).unique(dim=0)) == 8


def test_an_expert_is_trained_as_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    value_of, collect = Value.advantages_and_returns, Sampler.collect

    def valued(value, rollout, rewards, **factors):
        seen.append(factors)
        return value_of(value, rollout, rewards, **factors)

    monkeypatch.setattr(Value, "advantages_and_returns", valued)
    monkeypatch.setattr(Sampler, "collect", lambda one, n: seen.append(n) or collect(one, n))
    sizes = {"steps": 21, "environments": 2, "discount": 0.9, "gae_lambda": 0.8}
    train_expert("CartPole-v1", 1, **sizes)
    assert seen == [11, {"discount": 0.9, "gae_lambda": 0.8}]


def test_a_seed_is_that_of_the_experts_first_weights() -> None:
    first, again, other = (
        parameters_to_vector(train_expert("CartPole-v1", 0, seed=seed).parameters())
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
