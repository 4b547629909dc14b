"""Runs whose averaged weights are validated and kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bilevel.experiment import checkpoint
from bilevel.robustness import EMA, Batch, Trainer
from bilevel.robustness.training import trainer as module
from bilevel.robustness.training import validation
from tests.robustness.training.runs import RECIPE, equal, outcome, stop_after

AVERAGING = replace(RECIPE, ema=0.8)


def test_the_networks_that_are_trained_do_not_notice_their_average(
    build: Callable[..., Trainer],
) -> None:
    kept, games = [], []
    for recipe in (AVERAGING, RECIPE):
        trainer = build(recipe=recipe)
        torch.manual_seed(0)
        trainer.fit()
        kept.append(trainer.best_weights)
        games.append(checkpoint.load(trainer.path)["game"])
    assert equal(*games)
    assert not equal(*kept)


def test_weights_are_averaged_after_each_step(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(recipe=AVERAGING)
    step, expected = trainer.game.step, EMA(trainer.game.leader, AVERAGING.ema)

    def averaged(batch: Batch) -> dict[str, Any]:
        metrics = step(batch)
        expected.update_parameters(trainer.game.leader)
        return metrics

    monkeypatch.setattr(trainer.game, "step", averaged)
    trainer.fit()
    assert equal(trainer.averaged.state_dict(), expected.state_dict())


def test_a_stopped_run_with_averaged_weights_goes_on_bit_for_bit(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    straight = build(recipe=AVERAGING)
    straight.fit()
    stop_after(build(recipe=AVERAGING, save_every=-1.0), 9)
    resumed = build(recipe=AVERAGING)
    resumed.resume()
    assert resumed.game.steps == 8
    resumed.fit()
    assert equal(outcome(resumed), outcome(straight))
    assert equal(resumed.averaged.state_dict(), straight.averaged.state_dict())


def test_the_best_weights_are_those_that_were_validated(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = validation.accuracy

    def spy(model: Any, *rest: Any, **options: Any) -> float:
        seen.append(copy.deepcopy(model.state_dict()))
        return original(model, *rest, **options)

    monkeypatch.setattr(validation, "accuracy", spy)
    trainer = build(recipe=AVERAGING)
    progress = trainer.fit()
    assert equal(trainer.game.leader.model.state_dict(), seen[2 * progress.best_epoch])
