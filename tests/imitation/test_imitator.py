"""The imitation game: a policy moved by TRPO against a discriminator, in the core as it is."""

from __future__ import annotations

import io

import pytest
import torch

from bilevel import Bilevel, BilevelError, Detached, Parametric
from bilevel.imitation import (
    TRPO,
    CategoricalPolicy,
    Discriminator,
    GaussianPolicy,
    ImitationBatch,
    Imitator,
    MountainCarExpert,
    Sampler,
    Task,
    Value,
    demonstrate,
    make_envs,
    mlp,
    pairs,
    surrogate,
)

ENV = "MountainCar-v0"


def make() -> tuple[Bilevel, Sampler, torch.Tensor]:
    torch.manual_seed(0)
    shown = demonstrate(ENV, MountainCarExpert(), 2)
    task = Task.of(make_envs(ENV, 1))
    follower = Discriminator(task, reward="finish")
    leader = Imitator(CategoricalPolicy(2, 3), Value(2), follower)
    solver = Parametric(follower.init(None))
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=TRPO(leader.policy),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=1e-3),
        adjoint=Detached(),
    )
    sampler = Sampler(make_envs(ENV, 4), leader.policy, seed=1)
    return game, sampler, pairs(task, *shown.subsample())


@pytest.mark.parametrize("env", [ENV, "Pendulum-v1"])
def test_at_the_policy_that_played_it_is_the_policy_gradient(env: str) -> None:
    envs = make_envs(env, 4)
    policy = Task.of(envs).policy()
    rollout, advantages = Sampler(envs, policy, seed=1).collect(30), 5 * torch.randn(30, 4) + 2
    surrogate(policy, rollout, advantages).backward()
    weights = (advantages - advantages.mean()) / advantages.std()
    chosen = policy(rollout.observations).log_prob(rollout.actions)
    expected = torch.autograd.grad(-(chosen * weights).mean(), list(policy.parameters()))
    for parameter, slope in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, slope, atol=1e-6, rtol=1e-4)


def test_the_loss_is_the_surrogate_of_the_discriminators_rewards() -> None:
    game, sampler, expert = make()
    leader, batch = game.leader, ImitationBatch(sampler.collect(30), expert)
    y = game.follower.init(batch)
    advantages, _ = leader.advantages_and_returns(y, batch)
    leader.loss(y, batch).backward()
    expected = torch.autograd.grad(
        surrogate(leader.policy, batch.rollout, advantages), list(leader.policy.parameters())
    )
    assert all(map(torch.equal, [p.grad for p in leader.policy.parameters()], expected))
    assert all(parameter.grad is None for parameter in leader.value.parameters())


def test_the_value_leaves_the_returns_their_due() -> None:
    """Advantage and value add up to the discounted rewards of an episode, for λ = 1."""
    game, sampler, expert = make()
    game.leader.discount, game.leader.gae_lambda = 0.9, 1.0
    batch = ImitationBatch(sampler.collect(3), expert)
    y = game.follower.init(batch)
    earned = game.follower.reward(y, batch.rollout)
    with torch.no_grad():
        last = game.leader.value(batch.rollout.next_observations[-1])
    _, returns = game.leader.advantages_and_returns(y, batch)
    expected = earned[0] + 0.9 * (earned[1] + 0.9 * (earned[2] + 0.9 * last))
    torch.testing.assert_close(returns[0], expected)


def test_a_step_moves_both_players_and_a_stopped_game_goes_on() -> None:
    game, sampler, expert = make()
    first, second = (ImitationBatch(sampler.collect(50), expert) for _ in range(2))
    assert not game.leader.discriminator_weights
    start = [actor.clone() for actor in game.trained_parameters().values()]
    metrics = game.step(first)
    assert metrics["loss"].isfinite()
    met = game.follower.init(first)  # the policy met the discriminator as it was before its move
    assert all(map(torch.equal, game.leader.discriminator_weights.values(), met.values()))
    assert game.leader_opt.last.accepted
    assert game.leader_opt.last.kl <= 0.01
    pairs = zip(start, game.trained_parameters().values(), strict=True)
    moved = [not torch.equal(a, b) for a, b in pairs]
    values = len(list(game.leader.value.parameters()))
    assert sum(moved) == len(moved) - values  # the value is fitted apart
    file = io.BytesIO()
    torch.save(game.state_dict(), file)
    game.step(second)
    file.seek(0)
    resumed, _, _ = make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.step(second)
    torch.testing.assert_close(
        resumed.trained_parameters(), game.trained_parameters(), rtol=0, atol=0
    )


def test_advantages_are_those_of_the_batch_and_the_discriminator() -> None:
    """They are kept for the line search, and until the value function has moved."""
    game, sampler, expert = make()
    leader = game.leader
    first, second = (ImitationBatch(sampler.collect(30), expert) for _ in range(2))
    y = game.follower.init(first)
    other = {**y, "0.bias": y["0.bias"] + 0.1}
    for weights, batch in ((y, first), (other, first), (other, second), (y, second)):
        leader.loss(weights, batch)
        _, returns = leader.advantages_and_returns(weights, batch)
        assert torch.equal(leader.returns, returns)
    with torch.no_grad():
        leader.value.scale.mul_(2)
    leader.loss(y, second)
    assert not torch.equal(leader.returns, returns)


def test_a_policy_whose_actions_have_a_probability_for_each_number() -> None:
    class Apart(GaussianPolicy):
        def forward(self, observations: torch.Tensor) -> torch.distributions.Normal:
            return super().forward(observations).base_dist

    rollout = Sampler(make_envs("Pendulum-v1", 2), GaussianPolicy(3, 1)).collect(5)
    with pytest.raises(BilevelError, match=r"by a Normal: .*return Independent\(Normal"):
        surrogate(Apart(3, 1), rollout, torch.randn(5, 2))


def test_a_trunk_of_policy_and_value_is_shared_only_where_it_is_frozen() -> None:
    trunk, follower = mlp([2, 8, 8]), Discriminator(Task.of(make_envs(ENV, 1)), reward="finish")
    policy, value = CategoricalPolicy(8, 3, (), inputs=trunk), Value(8, (), inputs=trunk)
    with pytest.raises(BilevelError, match=r"policy's network\.0\.0\.weight is the value"):
        Imitator(policy, value, follower)
    trunk.requires_grad_(False)
    assert Imitator(policy, value, follower).policy is policy


def test_one_action_has_no_spread() -> None:
    game, _, expert = make()
    alone = Sampler(make_envs(ENV, 1), game.leader.policy).collect(1)
    with pytest.raises(BilevelError, match=r"the rollout has 1 actions: .*play more"):
        game.step(ImitationBatch(alone, expert))


def test_advantages_follow_a_value_function_whose_scale_stays() -> None:
    game, sampler, expert = make()
    leader, batch = game.leader, ImitationBatch(sampler.collect(30), expert)
    y = game.follower.init(batch)
    leader.loss(y, batch)
    before = leader.returns
    with torch.no_grad():
        leader.value.network[-1].bias.add_(1)
    leader.loss(y, batch)
    _, returns = leader.advantages_and_returns(y, batch)
    assert torch.equal(leader.returns, returns)
    assert not torch.equal(leader.returns, before)
