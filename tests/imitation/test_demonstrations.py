"""Demonstrations: whole episodes, kept to the last bit, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel import BilevelError
from bilevel.imitation import (
    Demonstrations,
    MountainCarExpert,
    demonstrate,
    load_demonstrations,
    save_demonstrations,
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


@pytest.mark.parametrize(("every", "offset"), [(1, 0), (20, 0), (20, 7)])
def test_every_kth_pair_of_each_episode(shown: Demonstrations, every: int, offset: int) -> None:
    thin = shown.thinned(every, offset)
    expected = [part[offset::every] for part in shown.observations.split(shown.lengths.tolist())]
    assert torch.equal(thin.observations, torch.cat(expected))
    assert thin.lengths.tolist() == [len(part) for part in expected]
    assert len(thin.actions) == len(thin.observations)


def test_the_first_of_them(shown: Demonstrations) -> None:
    few = shown.first(2)
    assert few.lengths.tolist() == shown.lengths[:2].tolist()
    assert len(few.observations) == int(few.lengths.sum())
    with pytest.raises(BilevelError, match="101 demonstrations are asked for and 100 are there"):
        shown.first(101)
    with pytest.raises(BilevelError, match="leaves nothing of an episode"):
        shown.thinned(20, 20)


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
    empty = shown._replace(observations=shown.observations[:0], actions=shown.actions[:0])
    save_demonstrations(path, empty._replace(lengths=shown.lengths[:0]))
    with pytest.raises(BilevelError, match="it is empty"):
        load_demonstrations(path, ENV)
    save_demonstrations(path, shown._replace(observations=shown.observations * torch.nan))
    with pytest.raises(BilevelError, match="NaN or infinity"):
        load_demonstrations(path, ENV)
    with pytest.raises(BilevelError, match="episodes is 0"):
        demonstrate(ENV, MountainCarExpert(), 0)
