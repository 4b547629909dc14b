"""Experts: TRPO solves CartPole, from its own rewards."""

from __future__ import annotations

import pytest
import torch

from bilevel.imitation import Sampler, demonstrate, train_expert


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
