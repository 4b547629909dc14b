"""Rollouts: what is recorded is what gymnasium did, at the ends of episodes above all."""

from __future__ import annotations

import contextlib
import copy
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.distributions import Independent, Normal

from bilevel import BilevelError
from bilevel.imitation import (
    CategoricalPolicy,
    GaussianPolicy,
    Policy,
    Rollout,
    Sampler,
    make_envs,
)


def played(name: str, steps: int, count: int, *, seed: int = 3) -> Rollout:
    envs = make_envs(name, count)
    n = envs.single_observation_space.shape[0]
    torch.manual_seed(0)
    if isinstance(envs.single_action_space, spaces.Discrete):
        policy = CategoricalPolicy(n, int(envs.single_action_space.n))
    else:
        policy = GaussianPolicy(n, envs.single_action_space.shape[0])
    return Sampler(envs, policy, seed=seed).collect(steps)


@pytest.mark.parametrize(
    ("name", "steps"), [("CartPole-v1", 80), ("MountainCar-v0", 230), ("Pendulum-v1", 220)]
)
def test_a_rollout_is_what_the_environments_did_one_by_one(name: str, steps: int) -> None:
    rollout = played(name, steps, 3)
    returns = []
    for number in range(3):
        env = gymnasium.make(name)
        shown, _ = env.reset(seed=3 + number)
        total = 0.0
        for t in range(steps):
            np.testing.assert_array_equal(rollout.observations[t, number], shown)
            action = rollout.actions[t, number].numpy()
            if isinstance(env.action_space, spaces.Box):
                action = action.clip(env.action_space.low, env.action_space.high)
            shown, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(rollout.next_observations[t, number], shown)
            assert rollout.rewards[t, number].item() == pytest.approx(float(reward), rel=1e-6)
            assert rollout.terminated[t, number].item() == terminated
            assert rollout.ended[t, number].item() == (terminated or truncated)
            total += float(reward)
            if terminated or truncated:
                returns.append(total)
                total = 0.0
                shown, _ = env.reset()
    assert returns
    assert sorted(rollout.returns.tolist()) == pytest.approx(sorted(returns))


def test_a_time_limit_truncates_and_a_fall_terminates() -> None:
    fallen, timed_out = played("CartPole-v1", 80, 2), played("Pendulum-v1", 220, 2)
    assert torch.equal(fallen.terminated, fallen.ended)
    assert fallen.ended.any()
    assert not timed_out.terminated.any()
    assert timed_out.ended.sum() == 2


def test_a_sampler_goes_on_where_it_was() -> None:
    policy = GaussianPolicy(3, 1)
    policy.register_buffer("seen", torch.tensor(0))  # as batch normalisation has: no float32
    sampler = Sampler(make_envs("Pendulum-v1", 2), policy, seed=1)
    parts = [sampler.collect(steps) for steps in (120, 120, 160)]
    assert torch.equal(parts[1].observations[0], parts[0].next_observations[-1])
    rewards, ended = (torch.cat([part[i] for part in parts]) for i in (4, 6))
    assert ended.nonzero().tolist() == [[199, 0], [199, 1], [399, 0], [399, 1]]
    assert not len(parts[0].returns)
    torch.testing.assert_close(parts[1].returns, rewards[:200].sum(0))
    torch.testing.assert_close(parts[2].returns, rewards[200:].sum(0))


def test_a_restart_begins_other_episodes() -> None:
    sampler = Sampler(make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2), seed=1)
    first = sampler.collect(5).observations[0]
    sampler.restart(1)
    assert torch.equal(sampler.collect(5).observations[0], first)


def test_a_restart_leaves_the_rewards_of_unfinished_episodes_out() -> None:
    """CartPole pays 1 a step: a return is the length of its episode."""
    sampler = Sampler(make_envs("CartPole-v1", 1), CategoricalPolicy(4, 2), seed=0)
    sampler.collect(5)
    sampler.restart(1)
    rollout = sampler.collect(500)
    assert rollout.returns[0] == rollout.ended[:, 0].int().argmax() + 1


def test_returns_are_in_the_order_in_which_episodes_end() -> None:
    rollout = Sampler(make_envs("CartPole-v1", 3), CategoricalPolicy(4, 2), seed=0).collect(90)
    begun, lengths = [0, 0, 0], []
    for step, env in rollout.ended.nonzero().tolist():
        lengths.append(step + 1 - begun[env])
        begun[env] = step + 1
    assert rollout.returns.tolist() == lengths


def test_the_log_probabilities_are_the_policys() -> None:
    rollout = played("Pendulum-v1", 5, 2)
    torch.manual_seed(0)
    policy = GaussianPolicy(3, 1)
    expected = policy(rollout.observations).log_prob(rollout.actions)
    assert not rollout.log_probs.requires_grad
    torch.testing.assert_close(rollout.log_probs, expected.detach())


class Echo(gymnasium.Env):
    """Shows the action that it was given, whose range is narrow."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-0.1, 0.2, (2,))

    def reset(self, **_: object) -> tuple[np.ndarray, dict]:
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return action.astype(np.float32), 0.0, False, False, {}


def test_actions_are_clipped_for_the_environment_only() -> None:
    gymnasium.register("Echo-v0", Echo)
    try:
        policy = GaussianPolicy(2, 2)
        rollout = Sampler(make_envs("Echo-v0", 3), policy).collect(20)
    finally:
        del gymnasium.registry["Echo-v0"]
    assert rollout.actions.abs().max() > 1
    torch.testing.assert_close(rollout.next_observations, rollout.actions.clamp(-0.1, 0.2))
    expected = policy(rollout.observations).log_prob(rollout.actions)
    torch.testing.assert_close(rollout.log_probs, expected.detach())


class Dear(gymnasium.Env):
    """Two steps an episode; those of the first cost much, all others one."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)
    time = 0

    def reset(self, **_: object) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, _: object) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        cost = 1e9 if self.time <= 2 else 1.0
        return np.zeros(1, np.float32), -cost, self.time % 2 == 0, False, {}


def test_a_dear_episode_hides_no_cheap_one_after_it() -> None:
    gymnasium.register("Dear-v0", Dear)
    try:
        rollout = Sampler(make_envs("Dear-v0", 1), CategoricalPolicy(1, 2)).collect(6)
    finally:
        del gymnasium.registry["Dear-v0"]
    assert rollout.returns.tolist() == [-2e9, -2.0, -2.0]


class Slicing(Policy):
    """Reads the first coordinate of the states ``(B, n)`` that a policy is promised."""

    def forward(self, observations: torch.Tensor) -> Independent:
        return Independent(Normal(observations[:, :1], 0.5), 1)


def test_a_policy_sees_a_batch_of_states_in_a_rollout_as_in_its_loss() -> None:
    rollout = Sampler(make_envs("Pendulum-v1", 2), Slicing(), seed=0).collect(5)
    error = (rollout.actions - rollout.observations[..., :1]).squeeze(-1) / 0.5
    expected = -error.square() / 2 - 0.5 * math.log(2 * math.pi) - math.log(0.5)
    torch.testing.assert_close(rollout.log_probs, expected)


def test_an_environment_that_shows_nan_is_refused() -> None:
    envs, policy = make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2)
    sampler = Sampler(envs, policy)
    for env in envs.envs:
        env.unwrapped.state = np.full(4, np.nan)
    with pytest.raises(BilevelError, match="CartPole-v1 returned NaN or infinity"):
        sampler.collect(1)


@pytest.mark.parametrize(
    ("env", "policy", "weight", "told"),
    [
        ("CartPole-v1", CategoricalPolicy(4, 2), "network.4.bias", "log-probabilities"),
        ("Pendulum-v1", GaussianPolicy(3, 1), "log_std", "actions"),
    ],
)
def test_a_policy_of_nan_is_not_the_environments_fault(
    env: str, policy: Policy, weight: str, told: str
) -> None:
    with torch.no_grad():
        policy.get_parameter(weight).fill_(torch.nan)
    with pytest.raises(BilevelError, match=f"the policy's {told} are NaN: its weights are"):
        Sampler(make_envs(env, 2), policy).collect(5)


@pytest.mark.parametrize("wrapped", [True, False])
def test_environments_that_keep_statistics_are_told(wrapped: bool) -> None:
    """A policy that is trained in them meets other observations in a copy."""
    wrappers = (gymnasium.wrappers.NormalizeObservation.wrapper_spec(),) if wrapped else ()
    gymnasium.register(
        "Normalized-v0",
        "gymnasium.envs.classic_control:PendulumEnv",
        max_episode_steps=5,
        additional_wrappers=wrappers,
    )
    told = r"Normalized-v0 starts otherwise .*NormalizeObservation.* Standardize\(states\)"
    try:
        with pytest.warns(UserWarning, match=told) if wrapped else contextlib.nullcontext():
            Sampler(make_envs("Normalized-v0", 2), GaussianPolicy(3, 1), seed=1)
    finally:
        del gymnasium.registry["Normalized-v0"]


class Broken(gymnasium.Env):
    """Two steps an episode; from its second on, what ``kind`` names is not finite."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)
    episode = -2  # the sampler resets twice

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def reset(self, **_: object) -> tuple[np.ndarray, dict]:
        self.episode, self.time = self.episode + 1, 0
        return self.shown("reset"), {}

    def step(self, _: object) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        last = self.time == 2
        shown = self.shown("end" if last else "step")
        return shown, np.inf if self.breaks("reward") else 1.0, last, False, {}

    def shown(self, kind: str) -> np.ndarray:
        return np.full(1, np.nan if self.breaks(kind) else 0, np.float32)

    def breaks(self, kind: str) -> bool:
        return self.episode > 0 and kind == self.kind


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("reset", "observations"),
        ("step", "observations"),
        ("end", "observations"),
        ("reward", "rewards"),
    ],
)
def test_whatever_is_not_finite_is_refused(kind: str, told: str) -> None:
    gymnasium.register("Broken-v0", Broken, kwargs={"kind": kind})
    try:
        sampler = Sampler(make_envs("Broken-v0", 2), CategoricalPolicy(1, 2))
        assert sampler.collect(1).observations.isfinite().all()
        with pytest.raises(BilevelError, match=f"Broken-v0 returned NaN or infinity in its {told}"):
            sampler.collect(3)
    finally:
        del gymnasium.registry["Broken-v0"]


def test_an_environment_that_ends_at_its_first_step_is_refused() -> None:
    gymnasium.register(
        "Brief-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=1
    )
    try:
        sampler = Sampler(make_envs("Brief-v0", 2), GaussianPolicy(3, 1))
        assert sampler.collect(3).ended.all()  # few steps may be the last of their episodes
        with pytest.raises(BilevelError, match="Brief-v0 ends at each step"):
            sampler.collect(10)
    finally:
        del gymnasium.registry["Brief-v0"]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_environments_whose_resets_are_steps_are_refused(mode: AutoresetMode) -> None:
    kwargs = {"autoreset_mode": mode}
    envs = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs=kwargs)
    with pytest.raises(BilevelError, match=rf"autoreset_mode is .*{mode.name}.*use make_envs"):
        Sampler(envs, CategoricalPolicy(4, 2))


@pytest.mark.parametrize(
    ("moved", "told"),
    [("double", "torch.float64 on cpu"), ("half", "float16"), ("meta", "on meta")],
)
def test_a_policy_elsewhere_or_of_another_precision_is_refused(moved: str, told: str) -> None:
    policy = CategoricalPolicy(4, 2)
    policy = policy.to("meta") if moved == "meta" else getattr(policy, moved)()
    sampler = Sampler(make_envs("CartPole-v1", 2), policy)
    with pytest.raises(BilevelError, match=rf"network.0.weight is .*{told}.*cpu\(\).float\(\)"):
        sampler.collect(3)


@pytest.mark.parametrize(
    ("env", "policy", "told"),
    [
        ("Pendulum-v1", GaussianPolicy(3, 4), r"\(2, 4\): Pendulum-v1 takes \(2, 1\)"),
        ("Pendulum-v1", CategoricalPolicy(3, 2), r"\(2,\): Pendulum-v1 takes \(2, 1\)"),
        ("CartPole-v1", GaussianPolicy(4, 1), r"\(2, 1\): CartPole-v1 takes \(2,\)"),
    ],
)
def test_actions_of_another_number_are_refused(env: str, policy: Policy, told: str) -> None:
    """Numpy would stretch one action to several when it clips them."""
    with pytest.raises(BilevelError, match=f"the policy's actions are {told}"):
        Sampler(make_envs(env, 2), policy).collect(3)


def test_no_steps_are_refused() -> None:
    sampler = Sampler(make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2))
    with pytest.raises(BilevelError, match=r"steps is 0: .*give 1 or more"):
        sampler.collect(0)


def test_a_rollout_after_one_that_was_refused_begins_where_the_environments_are() -> None:
    envs, policy = make_envs("CartPole-v1", 1), CategoricalPolicy(4, 2)
    sampler, sound = Sampler(envs, policy), copy.deepcopy(policy.state_dict())
    nn.init.constant_(policy.network[-1].bias, torch.nan)
    with pytest.raises(BilevelError, match="are NaN"):
        sampler.collect(5)
    policy.load_state_dict(sound)
    state = torch.tensor(envs.envs[0].unwrapped.state, dtype=torch.float32)
    assert torch.equal(sampler.collect(1).observations[0, 0], state)


def test_a_reward_that_is_not_finite_leaves_the_returns_of_later_episodes() -> None:
    """The rollout that has it is refused; the next one goes on with the same episodes."""
    sampler = Sampler(make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2))
    refused = np.array([[np.nan, np.inf], [1.0, 1.0], [1.0, 1.0]])
    ended = np.array([[False, True], [False, False], [False, False]])
    sampler._returns(refused, ended)
    returns = sampler._returns(np.array([[3.0, 3.0]]), np.array([[True, True]]))
    assert returns.tolist() == [5.0, 5.0]
