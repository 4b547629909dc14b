"""The discriminator as a follower: its optimum, its rewards, and the core's solvers on it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bilevel import Bilevel, BilevelError, Detached, Iterative, LeaderProblem, Parametric, testing
from bilevel.imitation import Discriminator, Imitation, Rollout, pairs
from bilevel.updates import Gradient


class Still(LeaderProblem):
    """A policy that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def loss(self, y: dict[str, torch.Tensor], batch: Imitation) -> torch.Tensor:
        return self.w**2


def batch_of(policy: list[int], expert: list[int]) -> Imitation:
    """One state, two actions: how often each was chosen by whom."""
    acted, shown = (torch.tensor([0] * counts[0] + [1] * counts[1]) for counts in (policy, expert))
    state, zero = torch.ones(len(acted), 1, 1), torch.zeros(len(acted), 1)
    rollout = Rollout(
        state, acted.view(-1, 1), zero, state, zero, zero.bool(), zero.bool(), torch.zeros(0)
    )
    return Imitation(rollout, pairs(torch.ones(len(shown), 1), shown, 2))


@pytest.mark.parametrize("solver", ["parametric", "iterative"])
def test_the_optimum_is_the_ratio_of_frequencies(solver: str) -> None:
    """D*(s, a) = π(s, a) / (π(s, a) + E(s, a)), found by the core's solvers alike."""
    torch.manual_seed(0)
    follower, leader = Discriminator(1, 2, discrete=True, hidden=()), Still()
    batch = batch_of([3, 1], [1, 4])
    if solver == "parametric":
        players = Parametric(follower.init(batch))
        game = Bilevel(
            leader,
            follower,
            players,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
            solver_opt=torch.optim.Adam(players.parameters(), lr=0.05),
            adjoint=Detached(),
        )
        for _ in range(800):
            game.step(batch)
        y = dict(players.y.named_parameters())
    else:
        y = Iterative(Gradient(2.0), 1500).solve(follower, leader, batch).value
    told = follower.logits(y, pairs(torch.ones(2, 1), torch.tensor([0, 1]), 2)).sigmoid()
    expected = torch.tensor([0.75 / (0.75 + 0.2), 0.25 / (0.25 + 0.8)])
    torch.testing.assert_close(told.detach(), expected, atol=1e-3, rtol=0)
    best = follower.objective(leader, y, batch).item()
    assert best == pytest.approx(
        sum(
            share * math.log(d if mine else 1 - d)
            for mine, shares in ((True, (0.75, 0.25)), (False, (0.2, 0.8)))
            for share, d in zip(shares, expected.tolist(), strict=True)
        ),
        abs=1e-4,
    )
    assert follower.accuracy(y, batch).item() == pytest.approx((0.75 + 0.8) / 2)


def test_the_rewards_signs() -> None:
    batch = batch_of([2, 1], [1, 1])
    survive, finish = (
        Discriminator(1, 2, discrete=True, reward=name) for name in ("survive", "finish")
    )
    y = survive.init(batch)
    logits = survive.logits(y, survive.behaviour(batch.rollout)).view(3, 1)
    torch.testing.assert_close(survive.reward(y, batch.rollout), F.softplus(-logits).detach())
    torch.testing.assert_close(finish.reward(y, batch.rollout), -F.softplus(logits).detach())
    assert survive.reward(y, batch.rollout).min() > 0 > finish.reward(y, batch.rollout).max()
    with pytest.raises(BilevelError, match="there is no reward 'both'"):
        Discriminator(1, 2, discrete=True, reward="both")


def test_it_keeps_what_a_follower_promises() -> None:
    testing.check_follower(Discriminator(1, 2, discrete=True), Still(), batch_of([3, 1], [1, 4]))


def test_pairs_of_vectors() -> None:
    states, actions = torch.randn(5, 3, 2), torch.randn(5, 3, 1)
    rows = pairs(states, actions, None)
    assert rows.shape == (15, 3)
    torch.testing.assert_close(rows[4], torch.cat([states[1, 1], actions[1, 1]]))
