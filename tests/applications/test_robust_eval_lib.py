"""What `applications/robust_eval.py` is made of: names of folders, and pictures."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bilevel import BilevelError
from bilevel.robustness import (
    AttackSettings,
    Curve,
    Evaluation,
    Splits,
    Trained,
    load_images,
    load_trained,
)
from tests.applications.conftest import write


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_images("digits", ".", seed=0)


def test_a_picture_of_an_attacker_that_is_missing_is_not_drawn(
    applications: Callable[[str], ModuleType], tmp_path: Path, digits: Splits
) -> None:
    pictures, folder = applications("robust_eval_lib.pictures"), write(tmp_path / "mine")

    def titles(folder: Path, norm: str = "linf") -> list[str]:
        evaluation = Evaluation("mine", 0.2, None, torch.ones(1).bool(), norm=norm)
        examples = pictures.attacked(load_trained(folder), evaluation, digits.test)
        return list(dict.fromkeys(example.title for example in examples))

    assert titles(folder) == ["FGSM", "PGM-20", "own grad-l2l"]
    assert titles(folder, "l2") == ["FGSM", "PGM-20"]  # it was not trained for that
    assert titles(write(tmp_path / "pgm", "pgm")) == ["FGSM", "PGM-20", "own pgm"]
    (folder / "attacker.safetensors").unlink()
    assert titles(folder) == ["FGSM", "PGM-20"]


def test_pictures_are_of_images_that_were_right_before(
    applications: Callable[[str], ModuleType], tmp_path: Path, digits: Splits
) -> None:
    """Else a prediction that is wrong would not tell of an attack."""
    pictures, folder = applications("robust_eval_lib.pictures"), write(tmp_path / "mine", "plain")
    hardly = Evaluation("mine", 1e-6, None, torch.ones(1).bool())
    examples = pictures.attacked(load_trained(folder), hardly, digits.test)
    assert {example.prediction == example.label for example in examples} == {True}


def test_folders_and_names(
    applications: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, folder = applications("robust_eval_lib.inputs"), write(tmp_path / "lr=0.1" / "pgm")
    source = inputs.Source(None, tmp_path)

    def load(given: str) -> list[Trained]:
        return inputs.load((given,), torch.device("cpu"), source, allow_import=False)

    given = (str(folder), f"mine={folder}", str(folder / "classifier.safetensors"))
    assert [load(one)[0].name for one in given] == ["pgm", "mine", "pgm"]
    for name in ("", ".", ".."):  # the battery would be kept in --out itself, or beside it
        with pytest.raises(BilevelError, match=rf"names a classifier '{re.escape(name)}': .*mine="):
            load(f"{name}={folder}")
    monkeypatch.chdir(folder)
    assert load(".")[0].name == "pgm"
    monkeypatch.chdir(tmp_path)
    assert load("lr=0.1/pgm")[0].name == "pgm"
    write(tmp_path / "lr:0")  # a folder, not a function of a module
    assert load("lr:0")[0].about.model == "small-cnn"
    with pytest.raises(BilevelError, match=r"cannot read weights from .*/nowhere=0\.1/pgm"):
        load("runs/nowhere=0.1/pgm")
    for name in ("pgm", "plain"):
        write(tmp_path / "runs" / name)
    with pytest.raises(BilevelError, match=r"runs holds pgm, plain, .*such as runs/pgm$"):
        load("runs")


def test_a_surrogate_is_another_classifier(
    applications: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Wherever its files are; one of the same weights that leaves out a layer is another."""
    check = applications("robust_eval_lib.inputs").check_surrogates
    target = load_trained(write(tmp_path / "mine"))
    with pytest.raises(BilevelError, match=r"surrogate copy is mine itself: .*with another seed"):
        check(target, [load_trained(write(tmp_path / "copy"))])
    other = load_trained(write(tmp_path / "other", seed=1))
    function = replace(target, about=replace(target.about, model="models:without_jpeg"))
    check(target, [other, function])


def test_the_pattern_in_the_help_finds_classifiers_alone(
    applications: Callable[[str], ModuleType], out: Path
) -> None:
    """Beside which a run leaves its results and its figure."""
    pattern = re.search(r"runs/adv_training/(\*\S*)", applications("robust_eval").__doc__)[1]
    given = tuple(glob.glob(f"{out}/{pattern}"))
    inputs, cpu = applications("robust_eval_lib.inputs"), torch.device("cpu")
    found = inputs.load(given, cpu, inputs.Source(None, out), allow_import=False)
    assert [one.name for one in found] == ["plain"]


def test_curves_are_of_the_norm_and_radius_of_the_report(
    applications: Callable[[str], ModuleType],
    tmp_path: Path,
    digits: Splits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are there are taken for the same report alone."""
    curves, measured = applications("robust_eval_lib.curves"), []

    def curve(model, images, eps, *, norm, **_):
        measured.append((eps, norm, len(images.labels)))
        return Curve("ε", (0.0,), (1.0,), 5)

    for name in ("accuracy_by_epsilon", "accuracy_by_iterations"):
        monkeypatch.setattr(curves, name, curve)
    model, few = torch.nn.Linear(1, 1), digits.test.subset(torch.arange(5))
    given = {"batch_size": 8, "path": tmp_path / "curves.pt", "resume": True, "show": print}
    reports = [
        (digits.test, AttackSettings(eps=0.2, classes=10)),
        (digits.test, AttackSettings(eps=0.2, classes=10)),
        (digits.test, AttackSettings(eps=0.3, classes=10)),
        (digits.test, AttackSettings(eps=0.3, classes=10, norm="l2")),
        (few, AttackSettings(eps=0.3, classes=10, norm="l2")),
    ]
    for images, settings in reports:
        curves.measure_curves(model, images, settings, **given)
    count = len(digits.test.labels)
    expected = [(0.2, "linf", count), (0.3, "linf", count), (0.3, "l2", count), (0.3, "l2", 5)]
    assert measured == [one for one in expected for _ in range(2)]
