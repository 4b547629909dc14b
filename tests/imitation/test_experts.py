"""Experts: TRPO solves CartPole, from its own rewards."""

from __future__ import annotations

import torch

from bilevel.imitation import demonstrate, train_expert


def test_trpo_balances_the_pole() -> None:
    """At least 490 within 40 iterations of 5,000 steps; here 15 are enough."""
    best: list[float] = []
    policy = train_expert(
        "CartPole-v1", 15, tell=lambda _, returns: best.append(float(returns.mean()))
    )
    assert max(best) >= 490
    assert demonstrate("CartPole-v1", policy, 20, seed=5).returns.mean() >= 400
    assert torch.tensor(best[:2]).max() < 60  # it did not start there
