"""docs/imitation.md: the wrappers of a registration make vectors and numbers of other spaces."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import pytest

from bilevel.imitation import Task, demonstrate, make_envs

PAGE = Path(__file__).parents[2] / "docs" / "imitation.md"
YOURS = """
import gymnasium as gym
import numpy as np

class YourEnv(gym.Env):
    observation_space = gym.spaces.Dict(
        place=gym.spaces.Box(-9, 9, (2,)), near=gym.spaces.Discrete(2)
    )
    action_space = gym.spaces.MultiDiscrete([2, 3])

    def shown(self):
        return {"place": np.zeros(2, np.float32), "near": 1}

    def reset(self, *, seed=None, options=None):
        return self.shown(), {}

    def step(self, action):
        assert action in self.action_space
        return self.shown(), 1.0, False, False, {}
"""


def test_other_spaces_are_wrapped_in_the_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "your_package.py").write_text(YOURS)
    monkeypatch.syspath_prepend(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    try:
        exec(code, {})
        task = Task.of(make_envs("Yours-v0", 1))
        assert task == ("Yours-v0", 4, 6, True, (), ())
        assert demonstrate("Yours-v0", task.policy(), 2).lengths.tolist() == [100, 100]
    finally:
        gymnasium.registry.pop("Yours-v0", None)
