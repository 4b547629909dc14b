"""Several samplers in the same environments: none takes a state for that of another's episode."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial

import gymnasium
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

from bilevel import BilevelError
from bilevel.imitation import CategoricalPolicy, Rollout, Sampler, make_envs


def is_of_cartpole(rollout: Rollout) -> bool:
    """Whether each position moves by its velocity, 0.02 s a step."""
    before, after = rollout.observations, rollout.next_observations
    return torch.allclose(before[..., 0] + 0.02 * before[..., 1], after[..., 0], atol=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_sampler_does_not_go_on_after_another_one(wrapped: bool) -> None:
    envs, policy = make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2)
    first = Sampler(envs, policy)
    first.collect(5)
    second = Sampler(VectorWrapper(envs) if wrapped else envs, policy, seed=7)
    for _ in range(2):
        with pytest.raises(BilevelError, match=r"another sampler has moved .* restart\(seed\)"):
            first.collect(5)
        assert is_of_cartpole(second.collect(5))
    first.restart(3)
    assert is_of_cartpole(first.collect(5))
    with pytest.raises(BilevelError, match="another sampler"):
        second.collect(5)


@pytest.mark.parametrize("moment", [0, 2])
def test_a_sampler_does_not_go_on_after_a_step_that_failed(
    moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2))
    step, calls = sampler.envs.step, iter(range(9))

    def interrupted(actions: object) -> tuple:
        played = step(actions)
        if next(calls) == moment:
            raise KeyboardInterrupt
        return played

    monkeypatch.setattr(sampler.envs, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.collect(5)
    with pytest.raises(BilevelError, match="a rollout was interrupted"):
        sampler.collect(5)


def test_environments_that_no_sampler_has_begun() -> None:
    sampler = Sampler(make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2))
    sampler.envs = make_envs("CartPole-v1", 2)
    with pytest.raises(BilevelError, match=r"call restart\(seed\)"):
        sampler.collect(5)


def test_actions_that_no_environment_took_leave_the_episodes() -> None:
    sampler = Sampler(make_envs("CartPole-v1", 2), CategoricalPolicy(4, 2))
    policy, sampler.policy = sampler.policy, copy.deepcopy(sampler.policy).double()
    with pytest.raises(BilevelError, match="float64"):
        sampler.collect(5)
    sampler.policy = policy
    assert is_of_cartpole(sampler.collect(5))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_plays_on_as_the_sampler_does(copied: Callable[[Sampler], Sampler]) -> None:
    makers, mode = [partial(gymnasium.make, "CartPole-v1")] * 2, AutoresetMode.SAME_STEP
    sampler = Sampler(SyncVectorEnv(makers, autoreset_mode=mode), CategoricalPolicy(4, 2))
    sampler.collect(5)
    rollouts = []
    for one in (copied(sampler), sampler):
        torch.manual_seed(0)
        rollouts.append(one.collect(40))
    assert all(map(torch.equal, *rollouts))
    Sampler(sampler.envs, sampler.policy)
    with pytest.raises(BilevelError, match="another sampler"):
        copied(sampler).collect(5)
