"""Vector environments of one's own: their spaces, and the last observations of episodes."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from bilevel import BilevelError
from bilevel.imitation import CategoricalPolicy, Sampler, Task


class Counters(VectorEnv):
    """Two counters, up to 2 and to 3, in one array; another has what they last showed."""

    def __init__(self) -> None:
        self.num_envs, self.metadata = 2, {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = spaces.Box(0, 9, (1,))
        self.single_action_space = spaces.Discrete(2)
        self.action_space = spaces.MultiDiscrete([2, 2])
        self.time, self.last = np.zeros((2, 2, 1), np.float32)

    def reset(self, **_: object) -> tuple[np.ndarray, dict]:
        self.time[:] = 0
        return self.time, {}

    def step(self, _: object) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        self.time += 1
        self.last[:] = self.time
        ended = self.time[:, 0] == [2, 3]
        self.time[ended] = 0
        return self.time, np.ones(2), ended, ended & False, self.info()

    def info(self) -> dict:
        return {"final_obs": self.last}


def test_environments_may_reuse_the_array_of_last_observations() -> None:
    rollout = Sampler(Counters(), CategoricalPolicy(1, 2)).collect(5)
    assert rollout.next_observations[..., 0].T.tolist() == [[1, 2, 1, 2, 1], [1, 2, 3, 1, 2]]
    assert rollout.observations[..., 0].T.tolist() == [[0, 1, 0, 1, 0], [0, 1, 2, 0, 1]]


def test_environments_that_forget_the_last_observation_are_refused() -> None:
    envs = Counters()
    envs.info = dict  # type: ignore[method-assign]
    with pytest.raises(BilevelError, match=r"without info\['final_obs'\]: .*; return it from step"):
        Sampler(envs, CategoricalPolicy(1, 2)).collect(3)


def play(envs: VectorEnv) -> None:
    Sampler(envs, CategoricalPolicy(1, 2))


@pytest.mark.parametrize("reader", [Task.of, play])
@pytest.mark.parametrize(
    ("kind", "space", "told"),
    [
        ("action", spaces.Discrete(2, start=1), "counts its actions from 1: .*; wrap it"),
        ("action", spaces.MultiBinary(2), "has actions MultiBinary.*; wrap it in gymnasium"),
        ("action", spaces.MultiDiscrete([2]), "has actions MultiDiscrete.*; wrap it in gymnasium"),
        ("observation", spaces.Dict(), "has observations Dict.*: policies read vectors"),
    ],
)
def test_other_spaces_are_refused(reader, kind: str, space: Space, told: str) -> None:
    envs = Counters()
    setattr(envs, f"single_{kind}_space", space)
    with pytest.raises(BilevelError, match=f"^the environment {told}"):
        reader(envs)
