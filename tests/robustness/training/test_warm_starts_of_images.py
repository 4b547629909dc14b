"""Runs in which each image's attack starts where the last one on it has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bilevel import BilevelError, Iterative, ZeroSum, pgm
from bilevel.robustness import Splits, Threat, Trainer, make_game
from bilevel.robustness.training import trainer as module
from bilevel.updates import SignGradient
from tests.images import image_set
from tests.problems import BatchNormNet
from tests.robustness.training.runs import RECIPE, equal, outcome, stop_after

GOING_ON = replace(RECIPE, warm_start=True)


@pytest.mark.parametrize("steps", [4, 6, 9])
@pytest.mark.parametrize("method", ["fgsm", "two-step-l2l"])
def test_a_stopped_run_goes_on_bit_for_bit(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, method: str, steps: int
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    straight = build(method, recipe=GOING_ON)
    straight.fit()
    assert straight.memory.answers.flatten(1).any(1).all()
    stop_after(build(method, recipe=GOING_ON, save_every=-1.0), steps)
    resumed = build(method, recipe=GOING_ON)
    resumed.resume()
    assert bool(resumed.memory.answers.any())
    resumed.fit()
    left = [outcome(trainer) for trainer in (resumed, straight)]
    assert all(one.pop("seconds") for one in left)
    assert equal(*left)
    assert "follower.memory" in left[0]["game"]
    assert left[0]["best"].keys() == {"leader", "solver"}


def test_trainers_may_share_a_threat_model(build: Callable[..., Trainer], tmp_path: Path) -> None:
    alone, first, second = (build("fgsm", recipe=GOING_ON, path=tmp_path / name) for name in "abc")
    first.game.follower = second.game.follower
    first.game.leader.follower = second.game.follower
    for trainer in (alone, first, second):
        torch.manual_seed(0)
        trainer.fit()
    for trainer in (first, second):
        assert torch.equal(trainer.memory.answers, alone.memory.answers)


def test_a_trainer_that_is_built_again_resumes_its_run(build: Callable[..., Trainer]) -> None:
    trainer = build("fgsm", recipe=GOING_ON, save_every=-1.0)
    stop_after(trainer, 7)
    del trainer.game.step  # the interruption
    again = Trainer(
        trainer.game,
        trainer.data,
        GOING_ON,
        seed=0,
        path=trainer.path,
        config={"method": "fgsm"},
    )
    again.resume()
    assert again.memory.answers.any()


def test_runs_with_and_without_memory_are_different_ones(build: Callable[..., Trainer]) -> None:
    build(recipe=GOING_ON).fit()
    with pytest.raises(BilevelError, match="warm_start"):
        build().resume()


class Shift(Threat):
    def init(self, batch):
        return batch.x.new_zeros(len(batch.x), 1)

    def project(self, y, batch):
        return y.clamp(-0.1, 0.1)

    def perturbed(self, y, batch):
        return (batch.x + y[:, :, None, None]).clamp(0, 1)


def test_answers_that_are_no_perturbations_are_not_kept(tmp_path) -> None:
    threat = Shift()
    game = make_game(ZeroSum(BatchNormNet(), threat), threat, pgm(0.1, 1), GOING_ON)
    data = Splits(image_set(6), image_set(6), image_set(6))
    with pytest.raises(BilevelError, match=r"follower is .*Linf, L2, L1 or a subclass"):
        Trainer(
            game,
            data,
            GOING_ON,
            seed=0,
            path=tmp_path / "run.pt",
            validation_attack=(threat, pgm(0.1, 1)),
        )


def test_a_solver_that_goes_on_by_itself_has_no_memory_beside(
    build: Callable[..., Trainer],
) -> None:
    trainer = build("two-step-pgm")
    solver = Iterative(SignGradient(0.05), 2, warm_start=True)
    game = make_game(trainer.game.leader, trainer.game.follower, solver, GOING_ON)
    with pytest.raises(BilevelError, match=r"warm_start lets an attack start .* warm_start=False"):
        Trainer(game, trainer.data, GOING_ON, seed=0, path=trainer.path)
