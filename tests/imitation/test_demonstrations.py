"""Demonstrations: whole episodes, kept to the last bit, refused where they do not fit."""

from __future__ import annotations

import warnings
from pathlib import Path

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
    for part, whole in zip(shown.shown(every), shown[1:3], strict=True):
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


def test_the_first_of_them(shown: Demonstrations) -> None:
    few = shown.first(2)
    assert few.lengths.tolist() == shown.lengths[:2].tolist()
    assert len(few.observations) == int(few.lengths.sum())
    with pytest.raises(BilevelError, match="101 demonstrations are asked for and 100 are there"):
        shown.first(101)
    with pytest.raises(BilevelError, match="every 0th pair"):
        shown.shown(0)


def test_what_cannot_be_imitated(shown: Demonstrations, tmp_path: Path) -> None:
    path = tmp_path / "expert.npz"
    with pytest.raises(BilevelError, match="there are no demonstrations"):
        load_demonstrations(path, ENV)
    path.write_bytes(b"PK")
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    np.savez(path, observations=np.zeros(3))
    with pytest.raises(BilevelError, match="holds no demonstrations"):
        load_demonstrations(path, ENV)
    save_demonstrations(path, shown)
    with pytest.raises(BilevelError, match="shows MountainCar-v0, not CartPole-v1"):
        load_demonstrations(path, "CartPole-v1")
    save_demonstrations(path, shown._replace(actions=shown.actions[1:]))
    with pytest.raises(BilevelError, match="does not fit together"):
        load_demonstrations(path, ENV)
    save_demonstrations(path, Demonstrations(ENV, *(part[:0] for part in shown[1:])))
    with pytest.raises(BilevelError, match="it is empty"):
        load_demonstrations(path, ENV)
    save_demonstrations(path, shown._replace(observations=shown.observations * torch.nan))
    with pytest.raises(BilevelError, match="NaN or infinity"):
        load_demonstrations(path, ENV)
    with pytest.raises(BilevelError, match="episodes is 0"):
        demonstrate(ENV, MountainCarExpert(), 0)


def test_minari_keeps_them_too(
    shown: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    few = shown.first(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari would like to know who the author is
        save_minari("mountain-car/scripted-v0", few)
        again = load_minari("mountain-car/scripted-v0", ENV)
        with pytest.raises(BilevelError, match=r"already exists.*another name"):
            save_minari("mountain-car/scripted-v0", few)
    assert again.env == few.env
    assert all(map(torch.equal, again[1:], few[1:]))
    with pytest.raises(BilevelError, match="shows MountainCar-v0, not CartPole-v1"):
        load_minari("mountain-car/scripted-v0", "CartPole-v1")
    with pytest.raises(BilevelError, match="gave no dataset 'nobody/nothing-v0'"):
        load_minari("nobody/nothing-v0", ENV)
