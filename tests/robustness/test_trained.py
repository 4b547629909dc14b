"""Trained classifiers on disk: they load unchanged, and missing files are reported."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bilevel import BilevelError, ZeroSum
from bilevel.robustness import (
    L2,
    TRAINING_STEP,
    About,
    Attacker,
    Batch,
    ImageSet,
    Interpolation,
    Linf,
    Recipe,
    load_trained,
    save_trained,
    save_weights,
)
from bilevel.robustness.trained import CLASSIFIER
from bilevel.updates import NormalizedGradient

ABOUT = {
    "plain": About("plain", "small-cnn", 1, 10, "digits", 0.2),
    "grad-l2l": About(
        "grad-l2l", "small-cnn", 3, 7, "folder", 0.1, 5, Attacker("slim", 8, "batch", 0.5)
    ),
    "two-step-l2l": About(
        "two-step-l2l",
        "wrn-10-1",
        1,
        10,
        "digits",
        0.2,
        attacker=Attacker("conv-rnn", 4),
        interpolation={"layer": "trunk", "pairing": "next", "sense": "max"},
        class_names=tuple("9876543210"),
    ),
}


@pytest.mark.parametrize("about", ABOUT.values(), ids=ABOUT)
def test_what_was_saved_comes_back(about: About, tmp_path: Path) -> None:
    model, solver = about.classifier(), about.solver()
    save_trained(tmp_path / "run", about, model, solver)
    for path in (tmp_path / "run", tmp_path / "run" / "classifier.safetensors"):
        trained = load_trained(path)
        assert (trained.name, trained.about) == ("run", about)
        assert not trained.model.training  # other packages attack it as it is
        x = torch.rand(2, about.channels, 8, 8)
        assert torch.equal(trained.model(x), model.eval()(x))
        if not about.learned:
            assert trained.solver is None
            continue
        batch, follower = Batch(x, torch.tensor([0, 1])), Linf(about.epsilon)
        answers = [
            attacker.eval().solve(follower, ZeroSum(model, follower), batch).value
            for attacker in (solver, trained.solver)
        ]
        assert torch.equal(*answers)


@pytest.mark.parametrize(("given", "width"), [(None, 4), (9, 9)])
def test_the_networks_that_a_recipe_trains(given: int | None, width: int) -> None:
    """An attacker without a width has one that costs a fraction of the classifier."""
    images = ImageSet(torch.zeros(3, 2, 8, 8).byte(), torch.arange(3), ("a", "b", "c"))
    recipe = Recipe(model="wrn-10-1", epsilon=0.1, attacker_width=given, gradient_skip=0.5)
    state = torch.get_rng_state()
    about = About.of("grad-l2l", recipe, images, dataset="npz", seed=4, normalize="batch")
    attacker = Attacker(recipe.attacker, width, "batch", 0.5)
    names = ("a", "b", "c")
    expected = About("grad-l2l", "wrn-10-1", 2, 3, "npz", 0.1, 4, attacker)
    assert about == replace(expected, class_names=names, size=(8, 8))
    assert torch.equal(torch.get_rng_state(), state)  # the classifier is counted, not made


def test_the_follower_is_the_one_that_was_played_against() -> None:
    assert type(ABOUT["grad-l2l"].follower()) is Linf
    follower = ABOUT["two-step-l2l"].follower()
    assert isinstance(follower, Interpolation)
    assert (follower.eps, follower.pairing, follower.sense) == (0.2, "next", "max")
    assert ABOUT["two-step-l2l"].follower(0.1).eps == ABOUT["grad-l2l"].follower(0.1).eps == 0.1


def test_what_is_trained_in_l2_is_attacked_in_l2() -> None:
    images = ImageSet(torch.zeros(2, 1, 8, 6).byte(), torch.arange(2), ("a", "b"))
    recipe = Recipe(norm="l2", epsilon=0.5)
    about = About.of("7-step-pgm", recipe, images, dataset="folder", image_size=8)
    assert (about.norm, about.size, about.image_size) == ("l2", (8, 6), 8)
    assert [(type(f), f.eps) for f in (about.follower(), about.follower(2.0))] == [
        (L2, 0.5),
        (L2, 2.0),
    ]
    solver = about.solver()
    assert isinstance(solver.update, NormalizedGradient)
    assert (solver.steps, solver.update.step) == (7, TRAINING_STEP * 0.5)


def test_a_name_of_ones_own(tmp_path: Path) -> None:
    about = ABOUT["plain"]
    save_trained(tmp_path, about, about.classifier(), about.solver())
    assert load_trained(tmp_path, "mine").name == "mine"


def test_folders_by_name(tmp_path: Path) -> None:
    about = ABOUT["plain"]
    save_trained(str(tmp_path / "run"), about, about.classifier(), about.solver())
    assert load_trained(str(tmp_path / "run")).name == "run"


def test_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = ABOUT["plain"]
    save_trained(tmp_path / "run", about, about.classifier(), about.solver())
    monkeypatch.chdir(tmp_path / "run")
    for path in (".", "classifier.safetensors"):
        assert load_trained(path).name == "run"


def test_a_file_that_does_not_name_the_classes(tmp_path: Path) -> None:
    about = ABOUT["plain"]
    values = asdict(about)
    del values["class_names"]
    save_weights(tmp_path / CLASSIFIER, about.classifier(), {"about": json.dumps(values)})
    assert load_trained(tmp_path).about == about


def test_a_missing_attacker_is_none(tmp_path: Path) -> None:
    about = ABOUT["grad-l2l"]
    save_trained(tmp_path, about, about.classifier(), about.solver())
    (tmp_path / "attacker.safetensors").unlink()
    assert load_trained(tmp_path).solver is None


def test_what_is_no_trained_classifier_is_told(tmp_path: Path) -> None:
    with pytest.raises(BilevelError, match=r"cannot read weights from .*classifier.safetensors"):
        load_trained(tmp_path)
    path = tmp_path / "classifier.safetensors"
    save_weights(path, ABOUT["plain"].classifier(), {"model": "small-cnn"})
    with pytest.raises(BilevelError, match=r"does not say what network it holds \(KeyError"):
        load_trained(path)
    save_weights(
        path, ABOUT["plain"].classifier(), {"about": '{"attacker": {"from": "elsewhere"}}'}
    )
    with pytest.raises(BilevelError, match=r"does not say what network it holds \(TypeError"):
        load_trained(path)
    save_weights(path, ABOUT["plain"].classifier(), {"about": "[]"})
    with pytest.raises(BilevelError, match=r"does not say what network it holds \(AttributeError"):
        load_trained(path)
