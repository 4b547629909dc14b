"""Environments: what can be played, and one clear line where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from bilevel import BilevelError
from bilevel.imitation import (
    CategoricalPolicy,
    GaussianPolicy,
    Sampler,
    Task,
    demonstrate,
    make_envs,
)


class Switches(gymnasium.Env):
    """Moved by two switches, which no policy of ours can set."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.MultiBinary(2)


class FromOne(Switches):
    """Counts its actions from one."""

    action_space = spaces.Discrete(2, start=1)


class Images(Switches):
    """Shows images."""

    observation_space = spaces.Box(0, 1, (4, 4), np.float32)
    action_space = spaces.Discrete(2)


class Bits(FromOne):
    """Shows bits."""

    observation_space = spaces.MultiBinary(2)


class Grid(Switches):
    """Moved by a matrix."""

    action_space = spaces.Box(-1, 1, (2, 2))


class Clock(FromOne):
    """Counts its steps in the array that it shows."""

    observation_space = spaces.Box(0, 9, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.time = np.zeros(1, np.float32)

    def reset(self, **_: object) -> tuple[np.ndarray, dict]:
        self.time[:] = 0
        return self.time, {}

    def step(self, action: object) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self.time, 1.0, False, bool(self.time == 3), {}


class Notches(Switches):
    """Moved in whole steps."""

    action_space = spaces.Box(0, 5, (2,), np.int64)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    kinds = (Switches, FromOne, Images, Bits, Grid, Notches, Clock)
    for kind in kinds:
        gymnasium.register(f"{kind.__name__}-v0", kind)
    yield
    for kind in kinds:
        del gymnasium.registry[f"{kind.__name__}-v0"]


def test_they_start_anew_in_the_step_in_which_they_end() -> None:
    envs = make_envs("CartPole-v1", 3)
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_the_last_observation_is_not_that_of_the_reset() -> None:
    """Though the environment shows one array, which its reset overwrites within the step."""
    rollout = Sampler(make_envs("Clock-v0", 1), CategoricalPolicy(1, 2)).collect(6)
    assert rollout.observations.flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert rollout.next_observations.flatten().tolist() == [1, 2, 3, 1, 2, 3]
    assert demonstrate("Clock-v0", CategoricalPolicy(1, 2), 2).last.tolist() == [[3], [3]]


def test_a_task_is_read_off_the_spaces_and_makes_policies() -> None:
    task = Task.of(make_envs("MountainCar-v0", 1))
    assert task == ("MountainCar-v0", 2, 3, True, (), ())
    assert isinstance(task.policy(), CategoricalPolicy)
    assert Task.of(make_envs("Pendulum-v1", 1)) == ("Pendulum-v1", 3, 1, False, (-2.0,), (2.0,))
    assert isinstance(Task("vectors", 3, 2, discrete=False).policy(), GaussianPolicy)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("CartPole-v7", r"no environment 'CartPole-v7'.*CartPole-v1"),
        ("zzzzz", r"no environment 'zzzzz': see gymnasium.registry, or give package:Name-v0"),
        ("Mine/Own-v0", r"no environment 'Mine/Own-v0': .*give package:Name-v0 to import"),
        ("FrozenLake-v1", "policies read vectors"),
        ("Images-v0", "policies read vectors"),
        ("Bits-v0", "policies read vectors"),
        ("Grid-v0", "choose one of n actions or a vector"),
        ("Switches-v0", "choose one of n actions or a vector"),
        ("Notches-v0", r"has actions Box\(0, 5, .*int64\): .*floating dtype, or wrap it"),
        ("FromOne-v0", "counts its actions from 1: policies count from 0; wrap it"),
        ("nowhere_at_all:Mine-v0", "cannot be made: No module named 'nowhere_at_all'"),
    ],
)
def test_environments_that_cannot_be_played(name: str, told: str) -> None:
    with pytest.raises(BilevelError, match=told) as error:
        make_envs(name, 2)
    assert "\n" not in str(error.value)


def test_an_environment_whose_packages_are_missing_says_which() -> None:
    if gymnasium.registry.get("LunarLander-v3") is None:
        pytest.skip("no such environment")
    try:
        import Box2D  # noqa: F401
    except ImportError:
        with pytest.raises(BilevelError, match=r"LunarLander-v3 cannot be made.*install"):
            make_envs("LunarLander-v3", 1)


def test_a_module_that_registers_an_environment_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_tasks.py").write_text(
        "import gymnasium\n"
        "entry = 'gymnasium.envs.classic_control:PendulumEnv'\n"
        "gymnasium.register('Own-v0', entry, max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert Task.of(make_envs("own_tasks:Own-v0", 1)).env == "Own-v0"
    finally:
        gymnasium.registry.pop("Own-v0", None)


def test_a_name_without_a_version_is_the_newest_as_gymnasium_has_it() -> None:
    with pytest.warns(UserWarning, match="latest versioned environment `CartPole-v1`"):
        assert Task.of(make_envs("CartPole", 1)).env == "CartPole-v1"


def test_no_environments_are_refused() -> None:
    with pytest.raises(BilevelError, match=r"count is 0: .*give 1 or more"):
        make_envs("CartPole-v1", 0)


def test_each_dimension_of_an_action_is_clipped_to_its_own_range() -> None:
    task = Task("walk", 2, 2, False, (-1.0, -2.0), (3.0, 1.0))
    assert task.clip(torch.tensor([[-5.0, -5.0], [5.0, 5.0]])).tolist() == [[-1, -2], [3, 1]]
