"""Runs whose solver starts from its last answer, which fits batches of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bilevel import Bilevel, Iterative, ZeroSum
from bilevel.robustness import Linf, Recipe, Splits, Trainer
from bilevel.updates import SignGradient
from tests.images import image_set
from tests.problems import BatchNormNet
from tests.robustness.training.runs import RECIPE, equal, outcome, stop_after


@pytest.fixture
def build(tmp_path: Any) -> Callable[..., Trainer]:
    def build(images: int = 22, recipe: Recipe = RECIPE, **options: Any) -> Trainer:
        torch.manual_seed(0)
        follower = Linf(0.1)
        leader = ZeroSum(BatchNormNet(), follower)
        solver = Iterative(SignGradient(0.02), 1, warm_start=True)
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        game = Bilevel(leader, follower, solver, leader_opt=optimizer)
        data = Splits(image_set(images), image_set(6), image_set(6))
        return Trainer(game, data, recipe, seed=0, path=tmp_path / "run.pt", **options)

    return build


@pytest.mark.parametrize(("images", "steps"), [(22, 5), (20, 5), (3, 1)])
def test_the_smaller_batch_at_the_end_of_an_epoch_is_left_out(
    build: Callable[..., Trainer], images: int, steps: int
) -> None:
    """Unless it is the only one."""
    trainer = build(images)
    assert trainer.steps_per_epoch == steps
    trainer.fit()
    assert trainer.game.steps == 2 * steps


@pytest.mark.parametrize("steps", [4, 5, 6])
def test_a_stopped_run_goes_on_bit_for_bit(build: Callable[..., Trainer], steps: int) -> None:
    straight = build()
    straight.fit()
    straight.path.unlink()
    stop_after(build(save_every=-1.0), steps)
    resumed = build()
    resumed.resume()
    resumed.fit()
    left = [outcome(trainer) for trainer in (resumed, straight)]
    assert all(one.pop("seconds") for one in left)
    assert equal(*left)
