"""Validation: on which images epochs are compared, by which attack, in how much memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from bilevel import BilevelError, pgm
from bilevel.robustness import (
    L2,
    Interpolation,
    Linf,
    Perturbation,
    Trainer,
    attack,
    batches,
)
from bilevel.robustness.threats.bounds import Bounds
from bilevel.robustness.training import validation as module
from bilevel.robustness.training.validation import default_attack
from bilevel.updates import NormalizedGradient, SignGradient
from tests.robustness.training.runs import RECIPE


def test_epochs_are_compared_in_the_ball_of_the_game(build: Callable[..., Trainer]) -> None:
    given = build()
    game = given.game
    game.follower = L2(0.05)
    trainer = Trainer(game, given.data, RECIPE, seed=0, path=given.path)
    threat, solver = trainer.validation.attack
    assert repr(threat) == "L2(eps=0.05, start=0.0, loss=cross_entropy)"
    assert isinstance(solver.update, NormalizedGradient)
    assert (solver.steps, solver.update.step) == (10, pytest.approx(0.05 * 7 / 31))
    trainer.fit()
    batch = next(batches(given.data.validation, 6))
    moved = (attack(game.leader.model, threat, solver, batch).x - batch.x).flatten(1)
    assert torch.allclose(moved.norm(dim=1), torch.tensor(0.05), rtol=0.1)


def test_an_epoch_is_measured_alike_whatever_was_drawn_before(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a resumed run measures what the run never stopped does."""
    monkeypatch.setattr(module, "accuracy", lambda *_, **__: torch.rand(()).item())
    trainer, found = build(), []
    for seed, epoch in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(seed)
        found.append(trainer.validation.measure(trainer.game.leader.model, epoch))
    assert found[0] == found[1] != found[2]


def test_interpolation_is_validated_in_its_ball_by_the_cross_entropy() -> None:
    threat, solver = default_attack(Interpolation(0.1, layer="trunk"))
    assert repr(threat) == repr(Linf(0.1))
    assert isinstance(solver.update, SignGradient)
    assert (solver.steps, solver.update.step) == (10, pytest.approx(0.1 * 7 / 31))


@pytest.mark.parametrize("kind", [Linf, L2])
@pytest.mark.parametrize("bounds", [(0.2, 0.8), (0.0, 255.0), None])
def test_epochs_are_compared_within_the_followers_bounds(
    kind: type[Perturbation], bounds: Bounds | None
) -> None:
    threat, _ = default_attack(kind(0.1, bounds=bounds))
    assert isinstance(threat, kind)
    assert threat.bounds == bounds


def test_a_follower_whose_ball_is_not_known_brings_its_own_attack(
    build: Callable[..., Trainer],
) -> None:
    class Mine(Linf):
        pass

    given = build()
    given.game.follower = Mine(0.1)
    make = partial(Trainer, given.game, given.data, RECIPE, seed=0, path=given.path)
    with pytest.raises(
        BilevelError, match=r"Mine is none of Linf, L2 and L1: .*validation_attack="
    ):
        make()
    own = Mine(0.1), pgm(0.1, 1)
    assert make(validation_attack=own).validation.attack is own


def test_validation_takes_no_more_memory_than_training(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: object, images: object, *attack: object, batch_size: int) -> float:
        assert batch_size == 2 * RECIPE.batch_size
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "accuracy", full)
    with pytest.raises(BilevelError, match="out of memory with batches of 8 images"):
        build().fit()


def test_epochs_are_compared_on_the_images_that_are_held_out(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def noting(model: object, images: object, *attack: object, batch_size: int) -> float:
        given.append(images)
        return 0.5

    monkeypatch.setattr(module, "accuracy", noting)
    trainer = build("two-step-pgm")
    trainer.fit()
    assert len(given) == 2 * RECIPE.epochs  # clean, and under attack
    assert all(images is trainer.data.validation for images in given)


def test_a_radius_that_grows_needs_the_attack_that_compares_the_epochs(
    build: Callable[..., Trainer],
) -> None:
    """At the first ε the accuracies of later epochs would tell nothing."""
    trainer = build("two-step-pgm")
    trainer.game.follower.eps = 0.2
    with pytest.raises(BilevelError, match=r"eps was 0.1 .* and is 0.2 now: .*validation_attack="):
        trainer.fit()
    trainer = build("two-step-pgm", validation_attack=(Linf(0.2), pgm(0.05, 2)))
    trainer.game.follower.eps = 0.2
    assert trainer.fit().epoch == RECIPE.epochs


def test_a_classifier_for_other_images_is_told_before_the_first_step(
    build: Callable[..., Trainer],
) -> None:
    trainer = build("pgm")
    trainer.game.leader.model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(BilevelError, match=r"float32 images of \(1, \d, \d\) .* is made for"):
        trainer.fit()
    assert not trainer.path.exists()
