"""`Trainer` refuses the checkpoints of other runs, and says what is another one's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from bilevel import Alternating, BilevelError, pgm
from bilevel.experiment import checkpoint
from bilevel.robustness import L2, Trainer
from tests.robustness.training.runs import RECIPE, stop_after


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"method": "two-step-pgm"},
            "method = two-step-l2l, this one has method = two-step-pgm: .*the same settings",
        ),
        ({"recipe": replace(RECIPE, lr=0.5)}, "lr = 0.1, this one has lr = 0.5: "),
        ({"seed": 3}, "seed = 0, this one has seed = 3: "),
        ({"precision": "bf16"}, "precision = float32, .* precision = bf16: "),
        (
            {"validation_attack": (L2(0.1), pgm(0.01, 2))},
            r"validation attack = Linf\(.*, this one has validation attack = L2\(.*…: ",
        ),
        ({"monitor": "validation_clean"}, "monitor = validation_robust, .* = validation_clean: "),
        (
            {"config": {"method": "two-step-l2l", "width": 8}},
            "width = None, this one has width = 8: ",
        ),
    ],
)
def test_a_checkpoint_of_another_run(
    build: Callable[..., Trainer], change: dict[str, Any], told: str
) -> None:
    build().save()
    with pytest.raises(BilevelError, match=f"run.pt is a run with {told}"):
        build(**change).resume()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "3-step-pgm", "config": {"method": "two-step-pgm"}}, "solver"),
        ({"start": 0.1}, "follower"),
        ({"dropout": 0.5}, "leader"),
        ({"schedule": Alternating()}, "schedule"),
    ],
)
def test_a_checkpoint_of_another_game(
    build: Callable[..., Trainer], change: dict[str, Any], named: str
) -> None:
    build("two-step-pgm").save()
    with pytest.raises(BilevelError, match=f"run.pt is a run with .*{named} = "):
        build(**{"method": "two-step-pgm", **change}).resume()


@pytest.mark.parametrize(
    "change",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.5),
        lambda groups: torch.optim.SGD(groups, lr=0.001, momentum=0.9),
        lambda groups: torch.optim.Adam(groups, lr=0.1),
        lambda groups: torch.optim.SGD([{**groups[0], "weight_decay": 0.1}], lr=0.1, momentum=0.9),
    ],
    ids=["momentum", "learning rate", "class", "group"],
)
def test_a_checkpoint_of_other_optimizers(build: Callable[..., Trainer], change: Any) -> None:
    """Their state would bring their settings along, without a word."""

    def stepped_by(make: Any) -> Trainer:
        game = build("two-step-pgm").game
        game.leader_opt = make([{"params": [*game.leader.parameters()]}])
        return Trainer(game, given.data, RECIPE, seed=0, path=given.path)

    given, same = build("two-step-pgm"), partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    stopped = stepped_by(same)
    stop_after(stopped, 3)
    stopped.save()
    # On another device another kernel may make the same step.
    stepped_by(partial(same, foreach=True)).resume()
    assert Trainer(stopped.game, given.data, RECIPE, seed=0, path=given.path).resume() is None
    with pytest.raises(BilevelError, match="is a run with leader_opt = "):
        stepped_by(change).resume()


@pytest.mark.parametrize("values", ["images", "labels"])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_checkpoint_of_other_images(
    build: Callable[..., Trainer], part: str, values: str
) -> None:
    trainer = build()
    trainer.save()
    data = copy.deepcopy(trainer.data)
    changed = getattr(getattr(data, part), values)
    changed[-1] = 1 - changed[-1].clamp(max=1)
    told = "a run with checksum of images = .{8}, this one has checksum of images = .{8}: "
    with pytest.raises(BilevelError, match=told):
        build(data=data).resume()


def test_something_that_is_no_checkpoint_of_a_run(build: Callable[..., Trainer]) -> None:
    trainer = build()
    with pytest.raises(BilevelError, match="there is no checkpoint"):
        trainer.resume()
    whole = {"config": trainer.config, "game": trainer.game.state_dict()}
    for state, missing in (({}, "config"), (whole, "processes")):
        checkpoint.save(trainer.path, state)
        with pytest.raises(
            BilevelError, match=f"not the checkpoint of a training run .'{missing}'"
        ):
            trainer.resume()


def test_a_leader_with_other_settings_is_not_resumed(build: Callable[..., Trainer]) -> None:
    given = build("two-step-pgm")

    def weighted(weight: float) -> Trainer:
        given.game.leader.weight = weight
        return Trainer(given.game, given.data, RECIPE, seed=0, path=given.path)

    weighted(6.0).save()
    weighted(6.0).resume()
    with pytest.raises(BilevelError, match=r"is a run with leader = "):
        weighted(1.0).resume()
