"""Episodes of `applications/gail.py`: those that are drawn, and how long they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from PIL import Image

from bilevel.imitation import GaussianPolicy, MountainCarExpert, demonstrate
from tests.applications.conftest import one_line


@pytest.fixture
def module(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("gail")


def test_an_episode_is_drawn(applications: Callable[[str], ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    frames = applications("gail_lib.video")
    frames.check_rendering("MountainCar-v0")
    frames.record_gif(tmp_path / "car.gif", "MountainCar-v0", MountainCarExpert())
    assert (tmp_path / "car.gif").read_bytes().startswith(b"GIF89a")


class Strict(gymnasium.Env):
    """Goes on for ever, and takes only what its space has."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 1}
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-0.01, 0.01, (1,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert action in self.action_space
        self.steps += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return np.full((8, 8, 3), 30 * self.steps, np.uint8)


@pytest.fixture
def strict() -> Iterator[str]:
    gymnasium.register("Strict-v0", Strict, max_episode_steps=99)
    yield "Strict-v0"
    del gymnasium.registry["Strict-v0"]


def test_a_film_has_an_end_and_its_actions_are_in_range(
    applications: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any, strict: str
) -> None:
    frames = applications("gail_lib.video")
    monkeypatch.setattr(frames, "MAX_STEPS", 7)
    frames.record_gif(tmp_path / "strict.gif", strict, GaussianPolicy(1, 1))
    with Image.open(tmp_path / "strict.gif") as gif:
        assert gif.n_frames == 5  # before steps 0, 2, 4 and 6, and at the end


def test_what_cannot_be_drawn_is_told_before_anything_is_played(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: Any, strict: str
) -> None:
    monkeypatch.setattr(Strict, "render", lambda _: None)
    line = one_line(call(module, "--smoke", "--render", "--env", strict, "--out", tmp_path))
    assert re.search(
        "Strict-v0 cannot be rendered: its render.* no rgb_array; .*leave out", line
    ), line
    assert not list(tmp_path.iterdir())


def test_an_environment_without_a_time_limit_is_refused_before_anything_is_played(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    gymnasium.register("Endless-v0", Strict)
    try:
        line = one_line(call(module, "--smoke", "--env", "Endless-v0", "--out", tmp_path))
    finally:
        del gymnasium.registry["Endless-v0"]
    assert re.search(
        "Endless-v0 is registered without a time limit: .*give .* a max_episode_steps", line
    ), line
    assert not list(tmp_path.iterdir())


def test_episodes_are_as_long_as_the_time_limit(
    applications: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    """Both of an expert that is recorded and of a policy that is evaluated, of any package."""
    (tmp_path / "long_tasks.py").write_text(
        "import gymnasium\n"
        "entry = 'tests.applications.test_gail_episodes:Strict'\n"
        "gymnasium.register('Long-v0', entry, max_episode_steps=10_050)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    runs, experts = (applications(f"gail_lib.{name}") for name in ("runs", "experts"))
    monkeypatch.setattr(runs, "EVALUATION_EPISODES", 1)
    monkeypatch.setitem(experts.SCRIPTED, "long_tasks:Long-v0", lambda: GaussianPolicy(1, 1))
    try:
        assert runs.evaluate(GaussianPolicy(1, 1), "long_tasks:Long-v0").tolist() == [0]
        once = {"iterations": 1, "episodes": 1}
        shown = experts.expert_demonstrations("long_tasks:Long-v0", None, tmp_path, print, **once)
        assert shown.lengths.tolist() == [10_050]
        assert (tmp_path / "long_tasks-Long-v0.npz").exists()  # Windows has no : in names of files
    finally:
        gymnasium.registry.pop("Long-v0", None)


def test_an_expert_is_recorded_again_only_if_too_few_of_its_episodes_are_kept(
    applications: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    experts = applications("gail_lib.experts")
    recorded = []

    def play(env: str, expert: Any, episodes: int, seed: int) -> Any:
        recorded.append(episodes)
        return demonstrate(env, expert, episodes, seed=seed)

    monkeypatch.setattr(experts, "play", play)
    for episodes in (2, 3, 2, 3):
        shown = experts.expert_demonstrations(
            "MountainCar-v0", None, tmp_path, print, iterations=1, episodes=episodes
        )
        assert len(shown.first(episodes).lengths) == episodes
    assert recorded == [2, 3]
