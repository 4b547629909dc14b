"""Trainers of small networks on few images."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from bilevel import Schedule, ZeroSum
from bilevel.robustness import Attacker, Linf, Recipe, Splits, Trainer, make_solver
from bilevel.robustness.recipe import make_game
from tests.images import image_set
from tests.problems import BatchNormNet
from tests.robustness.training.runs import RECIPE


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """Makes a trainer whose epoch has six steps and whose follower starts at random.

    A clock ticks when it is read: a window of steps takes one tick.
    """
    monkeypatch.setattr(time, "perf_counter", count().__next__)
    splits = Splits(image_set(22), image_set(6), image_set(6))

    def build(
        method: str = "two-step-l2l",
        schedule: Schedule | None = None,
        *,
        start: float = 0.05,
        dropout: float = 0.2,
        recipe: Recipe = RECIPE,
        seed: int = 0,
        data: Splits = splits,
        **options: Any,
    ) -> Trainer:
        torch.manual_seed(seed)
        attacker = Attacker("two-layer", width=4)
        solver = make_solver(method, eps=0.1, channels=1, attacker=attacker)
        networks = BatchNormNet(dropout=dropout), solver
        for network in networks:
            network.to(memory_format=torch.channels_last)
        follower = Linf(0.1, start=start)
        leader = ZeroSum(networks[0], follower)
        game = make_game(leader, follower, solver, recipe, schedule=schedule)
        settings = {"path": tmp_path / "run.pt", "config": {"method": method}, **options}
        return Trainer(game, data, recipe, seed=seed, **settings)

    return build
