"""Demonstrations: whole episodes, kept to the last bit, refused where they do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from bilevel import BilevelError
from bilevel.imitation import (
    Demonstrations,
    GaussianPolicy,
    MountainCarExpert,
    demonstrate,
    load_demonstrations,
    load_minari,
    save_demonstrations,
    save_minari,
)

ENV = "MountainCar-v0"


@pytest.fixture(scope="module")
def shown() -> Demonstrations:
    return demonstrate(ENV, MountainCarExpert(), 100)


def test_the_scripted_expert_reaches_the_goal(shown: Demonstrations) -> None:
    """−119.8 ± 3.5: each step costs 1, so the return is the length."""
    assert torch.equal(shown.returns, -shown.lengths.float())
    assert shown.returns.mean().item() == pytest.approx(-119.8, abs=2)
    assert shown.returns.std().item() < 6
    ends = shown.lengths.cumsum(0) - 1
    assert shown.observations[ends, 0].min() > 0.4  # one step before the goal at 0.5


def test_they_are_kept_bit_for_bit(shown: Demonstrations, tmp_path: Path) -> None:
    save_demonstrations(tmp_path / "expert.npz", shown)
    again = load_demonstrations(tmp_path / "expert.npz", ENV)
    assert again.env == shown.env
    assert all(map(torch.equal, again[1:], shown[1:]))


@pytest.mark.parametrize("every", [1, 20])
def test_every_kth_pair_of_each_episode(shown: Demonstrations, every: int) -> None:
    lengths = shown.lengths.tolist()
    for part, whole in zip(shown.subsample(every), shown[1:3], strict=True):
        expected = [episode[::every] for episode in whole.split(lengths)]
        assert torch.equal(part, torch.cat(expected))


def test_episodes_are_whole(shown: Demonstrations) -> None:
    assert shown.terminated.all()
    assert shown.last[:, 0].min() >= 0.5
    again = demonstrate("Pendulum-v1", GaussianPolicy(3, 1), 2)
    assert not again.terminated.any()
    assert again.lengths.tolist() == [200, 200]
    assert again.last.shape == (2, 3)
    assert again.returns.tolist() == [part.sum() for part in again.rewards.split(200)]


def test_episodes_begin_where_the_seed_says() -> None:
    few, env = demonstrate(ENV, MountainCarExpert(), 2, seed=7), gymnasium.make(ENV)
    for number, begin in enumerate((0, int(few.lengths[0]))):
        np.testing.assert_array_equal(few.observations[begin], env.reset(seed=7 + number)[0])


def test_the_first_of_them(shown: Demonstrations) -> None:
    few = shown.first(2)
    assert few.lengths.tolist() == shown.lengths[:2].tolist()
    assert len(few.observations) == int(few.lengths.sum())
    with pytest.raises(BilevelError, match="101 demonstrations are requested and 100 are there"):
        shown.first(101)
    with pytest.raises(BilevelError, match="every is 0"):
        shown.subsample(0)


def test_what_cannot_be_imitated(shown: Demonstrations, tmp_path: Path) -> None:
    path = tmp_path / "expert.npz"
    with pytest.raises(BilevelError, match="there is no file of demonstrations"):
        load_demonstrations(path, ENV)
    path.write_bytes(b"PK")
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    np.savez(path, observations=np.zeros(3))
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    save_demonstrations(path, shown)
    with pytest.raises(BilevelError, match="has demonstrations of MountainCar-v0, not CartPole-v1"):
        load_demonstrations(path, "CartPole-v1")
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"PK\1\2") + 8] |= 1  # says that it is encrypted
    path.write_bytes(damaged)
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    few = shown.first(2)
    for misfit in (
        {"actions": few.actions[1:]},
        {"last": few.last[1:]},
        {"terminated": few.terminated[1:]},
        {"lengths": torch.cat([few.lengths, torch.zeros(1).long()])},
        {"lengths": torch.tensor([-1, len(few.actions) + 1])},
    ):
        save_demonstrations(path, few._replace(**misfit))
        with pytest.raises(BilevelError, match="inconsistent"):
            load_demonstrations(path, ENV)
    np.savez(path, **few._replace(actions=np.array(["left", "right"]))._asdict())
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    save_demonstrations(path, Demonstrations(ENV, *(part[:0] for part in shown[1:])))
    with pytest.raises(BilevelError, match="it is empty"):
        load_demonstrations(path, ENV)
    save_demonstrations(path, shown._replace(observations=shown.observations * torch.nan))
    with pytest.raises(BilevelError, match="NaN or infinity"):
        load_demonstrations(path, ENV)
    with pytest.raises(BilevelError, match="episodes is 0"):
        demonstrate(ENV, MountainCarExpert(), 0)


def test_a_file_runs_no_code(shown: Demonstrations, tmp_path: Path) -> None:
    class Opened:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "expert.npz"
    np.savez(path, **shown.first(1)._replace(rewards=np.array([Opened()]))._asdict())
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "misshapen",
    [
        lambda few: {"observations": few.observations[..., None]},
        lambda few: {"observations": few.observations[:, 0]},
        lambda few: {"actions": few.actions[:, None, None]},
        lambda few: {"rewards": few.rewards[:, None]},
        lambda few: {"lengths": few.lengths[:, None]},
        lambda few: {"last": few.last[:, :1]},
        lambda few: {"terminated": few.terminated[:, None]},
    ],
)
def test_arrays_of_another_shape_are_told_theirs(
    shown: Demonstrations, tmp_path: Path, misshapen: Callable[[Demonstrations], dict]
) -> None:
    few, path = shown.first(2), str(tmp_path / "own.npz")
    save_demonstrations(path, few._replace(**misshapen(few)))
    with pytest.raises(BilevelError, match=r"own.npz holds observations .* have .* \(S, n\), act"):
        load_demonstrations(path, ENV)


def test_an_episode_has_a_whole_number_of_steps(shown: Demonstrations, tmp_path: Path) -> None:
    save_demonstrations(tmp_path / "own.npz", shown._replace(lengths=shown.lengths + 0.4))
    with pytest.raises(BilevelError, match=r"lengths torch.float32 that are not whole"):
        load_demonstrations(tmp_path / "own.npz", ENV)


def test_minari_keeps_them_too(
    shown: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # where it looks for names that it does not have
    few = shown.first(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari would like to know who the author is
        save_minari("mountain-car/scripted-v0", few)
        again = load_minari("mountain-car/scripted-v0", ENV)
        with pytest.raises(BilevelError, match=r"already exists.*another name"):
            save_minari("mountain-car/scripted-v0", few)
    assert again.env == few.env
    assert all(map(torch.equal, again[1:], few[1:]))
    with pytest.raises(BilevelError, match="has demonstrations of MountainCar-v0, not CartPole-v1"):
        load_minari("mountain-car/scripted-v0", "CartPole-v1")
    with pytest.raises(BilevelError, match="gave no dataset 'nobody/nothing-v0'"):
        load_minari("nobody/nothing-v0", ENV)


@pytest.mark.filterwarnings("ignore")
def test_a_minari_dataset_need_not_name_its_environment(
    shown: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    few, env = shown.first(1), gymnasium.make(ENV)
    states = torch.cat([few.observations, few.last]).numpy()
    ends = np.arange(len(few.actions)) == len(few.actions) - 1
    episode = minari.data_collector.EpisodeBuffer(
        0, None, None, states, few.actions.numpy(), few.rewards.numpy(), ends, ends & False
    )
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    minari.create_dataset_from_buffers("plain/car-v0", [episode], **spaces)
    again = load_minari("plain/car-v0", ENV)
    assert again.env == ENV
    assert all(map(torch.equal, again[1:], few[1:]))


@pytest.mark.filterwarnings("ignore")
def test_minari_stores_no_environment_of_a_class(
    shown: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    kind = type(gymnasium.make(ENV).unwrapped)
    gymnasium.register("Car-v0", kind, max_episode_steps=200)
    try:
        with pytest.raises(BilevelError, match=r'by text: entry_point="module:Class"'):
            save_minari("plain/car-v0", shown.first(1)._replace(env="Car-v0"))
    finally:
        del gymnasium.registry["Car-v0"]


def test_numbers_of_any_kind_are_read(shown: Demonstrations, tmp_path: Path) -> None:
    few = shown.first(2)
    kinds = dict.fromkeys(("observations", "rewards", "lengths", "last"), np.float64)
    kinds |= {"actions": np.dtype(">i4"), "terminated": np.int64, "last": np.dtype(">f8")}
    arrays = {name: getattr(few, name).numpy().astype(kind) for name, kind in kinds.items()}
    np.savez(tmp_path / "own.npz", env=ENV, **arrays)
    again = load_demonstrations(tmp_path / "own.npz", ENV)
    for part, expected in zip(again[1:], few[1:], strict=True):
        assert part.dtype == expected.dtype
        assert torch.equal(part, expected)


def test_continuous_actions_are_kept_as_the_environment_took_them(tmp_path: Path) -> None:
    wild = GaussianPolicy(3, 1)
    with torch.no_grad():
        wild.log_std.fill_(2)
    again = demonstrate("Pendulum-v1", wild, 1)
    assert again.actions.abs().max() == 2
    save_demonstrations(tmp_path / "own.npz", again._replace(actions=again.actions.double()))
    assert load_demonstrations(tmp_path / "own.npz", "Pendulum-v1").actions.dtype == torch.float32


def test_the_module_that_registers_an_environment_is_no_part_of_its_name(
    shown: Demonstrations, tmp_path: Path
) -> None:
    save_demonstrations(tmp_path / "own.npz", shown.first(1))
    assert load_demonstrations(tmp_path / "own.npz", f"gymnasium:{ENV}").env == ENV


def test_an_episode_without_an_end_is_told() -> None:
    gymnasium.register("Endless-v0", "gymnasium.envs.classic_control:PendulumEnv")
    try:
        with pytest.raises(BilevelError, match=r"Endless-v0 is not over after 120 .*TimeLimit"):
            demonstrate("Endless-v0", GaussianPolicy(3, 1), 2, max_steps=120)
    finally:
        del gymnasium.registry["Endless-v0"]
    assert demonstrate("Pendulum-v1", GaussianPolicy(3, 1), 1, max_steps=200).lengths == 200
    with pytest.raises(BilevelError, match="Pendulum-v1 is not over after 170 steps"):
        demonstrate("Pendulum-v1", GaussianPolicy(3, 1), 1, max_steps=170)


@pytest.mark.parametrize("name", ["observations", "rewards", "last"])
def test_numbers_without_end_are_refused(tmp_path: Path, name: str) -> None:
    shown = demonstrate("MountainCar-v0", MountainCarExpert(), 1)
    part = getattr(shown, name).clone()
    part[-1] = torch.inf
    save_demonstrations(tmp_path / "shown.npz", shown._replace(**{name: part}))
    with pytest.raises(BilevelError, match="holds NaN or infinity"):
        load_demonstrations(tmp_path / "shown.npz", "MountainCar-v0")


@pytest.mark.parametrize("episodes", [-1, 0, 3])
def test_episodes_that_are_not_there(episodes: int) -> None:
    shown = demonstrate("MountainCar-v0", MountainCarExpert(), 2)
    with pytest.raises(BilevelError, match=f"{episodes} demonstrations are requested and 2 are"):
        shown.first(episodes)
