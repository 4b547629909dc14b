"""`applications/robust_eval.py` as a user runs it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bilevel.robustness import (
    About,
    Splits,
    load_images,
    save_trained,
)
from tests.applications.conftest import one_line, write
from tests.images import write_image, write_tree

FEW = ["--test-size", 12, "--curve-size", 8, "--points", 3, "--queries", 3]


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_images("digits", ".", seed=0)


@pytest.fixture
def run(
    applications: Callable[[str], ModuleType], tmp_path: Path, call: Callable[..., Any]
) -> Callable[..., Any]:
    app = applications("robust_eval")
    return lambda *arguments: call(app, *FEW, "--out", tmp_path / "out", *arguments)


def records(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    return [record for record in content["results"] if record["record"] == kind]


def test_every_attack_by_name(run: Callable[..., Any], tmp_path: Path) -> None:
    folders = [write(tmp_path / "mine"), write(tmp_path / "plain", "plain")]
    names = "fgsm pgm-3 pgm-3-margin pgm-3-dlr apgd-ce apgd-dlr apgd-t cw random square own"
    arguments = ["--attack", *names.split(), "fresh", "transfer", "--fresh-steps", 2, "--no-curves"]
    other = write(tmp_path / "other", seed=1)
    ended = run(*folders, "--surrogate", other, *arguments)
    assert ended.status == 0, ended.err
    attacks = records(tmp_path, "attack")
    assert not [record["problem"] for record in attacks if record["problem"]]
    named = [record["attack"] for record in attacks if record["classifier"] == "mine"]
    assert len(named) == 14  # transfer gives two
    assert {"FGSM", "own grad-l2l", "fresh grad-l2l", "PGM-10 on other", "Square 3"} <= set(named)
    assert len(records(tmp_path, "summary")) == 2
    for page in ("report.html", "report.md"):
        text = (tmp_path / "out" / page).read_text()
        assert "mine" in text
        assert "Not trustworthy" in text  # nobody measured the curves


def test_every_attack_in_l2(run: Callable[..., Any], tmp_path: Path) -> None:
    """By default in the norm of its training; in another one without the attacker."""
    mine, other = write(tmp_path / "mine", norm="l2"), write(tmp_path / "other", seed=1)
    names = "fgsm pgm-3 pgm-3-margin apgd-ce apgd-t random square own fresh transfer"
    arguments = ["--attack", *names.split(), "--fresh-steps", 2, "--surrogate", f"s={other}"]
    for more in ([], ["--norm", "linf", "--epsilon", 0.1], ["--norm", "l2", "--epsilon", 0.3]):
        ended = run(mine, *arguments, *more)
        assert ended.status == 0, ended.err
        attacks = {record["attack"]: record["problem"] for record in records(tmp_path, "attack")}
        assert not any(attacks.values())
        assert ("own grad-l2l" in attacks) == ("linf" not in more)
        (summary,) = records(tmp_path, "summary")
        assert summary["norm"] == (more[1] if more else "l2")
        assert summary["trained_epsilon"] == (None if "linf" in more else 0.2)
        largest = max(one["at"] for one in records(tmp_path, "curve") if one["quantity"] == "ε")
        assert largest == (1 if "linf" in more else 8)  # of 8×8 images
        text = (tmp_path / "out" / "report.md").read_text()
        assert ("‖δ‖∞ ≤ 0.1" if "linf" in more else "‖δ‖₂ ≤") in text
        assert ("in L₂" in ended.out) == ("linf" not in more)


def test_the_worst_case_never_rises_and_the_curves_end(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    ended = run(write(tmp_path / "mine"), "--attack", "fgsm", "pgm-5", "random")
    assert ended.status == 0, ended.err
    (summary,) = records(tmp_path, "summary")
    falls = [summary["clean"], *(r["worst_case_so_far"] for r in records(tmp_path, "attack"))]
    assert falls == sorted(falls, reverse=True)
    assert falls[-1] == summary["worst_case"]
    by_epsilon = [r for r in records(tmp_path, "curve") if r["quantity"] == "ε"]
    assert (by_epsilon[0]["at"], by_epsilon[-1]["at"]) == (0, 1)
    assert by_epsilon[0]["accuracy"] <= 1
    assert len(records(tmp_path, "finding")) == 19


def test_a_stopped_run_goes_on(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "mine", interpolation={})  # whose attack starts at random
    all_of_it = folder, "--attack", "fgsm", "pgm-5", "--curve-size", 60
    assert run(*all_of_it).status == 0
    before = records(tmp_path, "attack"), records(tmp_path, "curve")
    pictures = (tmp_path / "out" / "examples.png").read_bytes()
    assert run(*all_of_it, "--resume").status == 0
    assert (records(tmp_path, "attack"), records(tmp_path, "curve")) == before
    assert (tmp_path / "out" / "examples.png").read_bytes() == pictures
    with monkeypatch.context() as restart:
        restart.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert run(*all_of_it).status == 0
    assert (records(tmp_path, "attack"), records(tmp_path, "curve")) == before
    refused = one_line(run(folder, "--attack", "fgsm", "--resume"))
    assert re.search(r"is a run with attacks = .*…, alone = ", refused)


def test_a_classifier_without_its_attacker_is_attacked_all_the_same(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write(tmp_path / "mine")
    (folder / "attacker.safetensors").unlink()
    assert run(folder, "--attack", "own", "fgsm", "--no-curves").status == 0
    own, fgsm = records(tmp_path, "attack")
    assert own["problem"] == "mine was saved without its attacker.safetensors"
    assert not fgsm["problem"]
    assert own["problem"] in (tmp_path / "out" / "report.html").read_text()


def test_curves_are_kept_for_the_same_settings_only(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, applications: Any
) -> None:
    """A run that is stopped before its curves leaves those of an earlier one."""
    module, measured = applications("robust_eval_lib.curves"), []
    original = module.accuracy_by_epsilon

    def spy(*arguments: Any, **settings: Any) -> Any:
        measured.append((settings["batch_size"], int(torch.get_rng_state().sum())))
        return original(*arguments, **settings)

    monkeypatch.setattr(module, "accuracy_by_epsilon", spy)
    curves, battery = (tmp_path / "out" / "mine" / f"{what}.pt" for what in ("curves", "battery"))
    few = [write(tmp_path / "mine"), "--attack", "random", "--batch-size", 4]
    assert run(*few).status == 0
    assert run(*few, "--resume").status == 0
    assert len(measured) == 1
    in_l2 = ["--norm", "l2", "--epsilon", 0.2]
    for changed in (in_l2, ["--seed", 1], ["--epsilon", 0.1], ["--curve-size", 7]):
        battery.unlink()
        assert run(*few, *changed, "--resume").status == 0
    assert len(measured) == 5
    battery.unlink()
    curves.unlink()
    assert run(*few, "--resume").status == 0
    curves.unlink()
    assert run(*few, "--resume").status == 0  # the battery is kept, and has drawn nothing
    assert measured[-1] == measured[-2] == measured[0]
    assert measured[0][0] == 4


MODULE = """
import torch
from sklearn.datasets import load_digits

x, y = map(torch.from_numpy, load_digits(return_X_y=True))
means = torch.stack([x[y == k].float().mean(0) / 16 for k in range(10)])


class Quantised(torch.nn.Module):
    def __init__(self, detach):
        super().__init__()
        self.detach = detach

    def forward(self, x):
        pixels = (x.detach() if self.detach else x).numpy()
        pixels = torch.from_numpy((pixels * 16).round() / 16).flatten(1)
        return -torch.cdist(pixels, means).square()


def detached():
    return Quantised(True)


def attached():
    return Quantised(False)
"""


def test_a_classifier_without_a_gradient_has_a_report(
    run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    applications: Callable[[str], ModuleType],
) -> None:
    """Attacks, curves and pictures that need one are missing, and measured again on resuming."""
    (tmp_path / "quantised_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    settings = ["--dataset", "digits", "--epsilon", 0.1, "--attack", "fgsm", "random", "square"]
    ended = run("quantised_networks:detached", *settings)
    assert ended.status == 0, ended.err
    assert "no pictures of FGSM: the classifier's output has no gradient" in ended.out
    problems = {record["attack"]: record["problem"] for record in records(tmp_path, "attack")}
    assert [name for name, problem in problems.items() if not problem] == ["random 3", "Square 3"]
    assert not records(tmp_path, "curve")
    findings = {record["item"]: record for record in records(tmp_path, "finding")}
    for item in ("unbounded attacks break everything", "PGM has converged"):
        assert findings[item]["figure"] == "not measured"
        assert "no gradient in the image" in findings[item]["sentence"]
    measured, module = [], applications("robust_eval_lib.curves")
    original = module.accuracy_by_epsilon
    spy = lambda *given, **settings: measured.append(1) or original(*given, **settings)  # noqa: E731
    monkeypatch.setattr(module, "accuracy_by_epsilon", spy)
    assert run("quantised_networks:detached", *settings, "--resume").status == 0
    assert measured
    refused = one_line(run("quantised_networks:attached", *settings))
    assert "takes no images that need a gradient" in refused


def test_images_of_any_size(run: Callable[..., Any], tmp_path: Path) -> None:
    """Brought to the size of the training."""
    photos = write_tree(tmp_path / "photos", count=30)
    write_image(photos / "cat" / "large.png", 1, size=(30, 20))
    names = {"class_names": ("cat", "dog"), "classes": 2, "channels": 3, "size": (8, 8)}
    folder = write(tmp_path / "mine", "plain", dataset="folder", **names)
    given = [folder, "--data-dir", photos, "--attack", "fgsm"]
    assert "as image_size (--image-size) does" in one_line(run(*given))
    assert "leave out --image-size, bring them to its size" in one_line(
        run(*given, "--image-size", 6)
    )
    assert run(*given, "--image-size", 8).status == 0
    write(tmp_path / "mine", "plain", dataset="folder", image_size=8, **names)
    assert run(*given).status == 0
    other = write(tmp_path / "other", "plain", dataset="folder", **names | {"size": (6, 6)})
    told = one_line(run(*given, "transfer", "--surrogate", other))
    assert "surrogate other has (6, 6) size, mine has (8, 8)" in told


def nan(folder: Path) -> Path:
    about = About("plain", "small-cnn", 1, 10, "digits", 0.2)
    model = about.classifier()
    torch.nn.init.constant_(model.get_parameter("head.bias"), torch.nan)
    save_trained(folder, about, model, about.solver())
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder: [], "no checkpoint is given"),
        (lambda folder: [folder / "nowhere"], "cannot read weights from"),
        (lambda folder: [write(folder), "--epsilon", 0], "epsilon is 0.0"),
        (lambda folder: [write(folder), "--epsilon", "1/0"], "--epsilon"),
        (lambda folder: [write(folder), "--attack", "pgd"], "there is no attack 'pgd'"),
        (lambda folder: [write(folder), "--seed", -1], "seed is -1: it must be a whole number"),
        (lambda folder: [write(folder), "--curve-size", 0], "curve_size is 0"),
        (lambda folder: [write(folder), write(folder)], "two classifiers have the same name"),
        (
            lambda folder: [write(folder), "--surrogate", write(folder / "s", classes=7)],
            "surrogate s has 7 classes",
        ),
        (
            lambda folder: [
                write(folder, class_names=[*"0123456789"]),
                "--surrogate",
                write(folder / "s", class_names=[*"0213456789"]),
            ],
            "surrogate s has other classes: '1' of given is '2' there",
        ),
        (
            lambda folder: [write(folder, class_names=[*"0132456789"])],
            "given was trained with other classes: '3' of its training is '2' in digits; give",
        ),
        (
            lambda folder: [write(folder, size=(16, 16))],
            "given was trained on images of (16, 16) pixels (height, width), digits has (8, 8)",
        ),
        (lambda folder: [write(folder, classes=7)], "takes 1 channels to 7 classes, digits has 1"),
        (
            lambda folder: [write(folder), "--alone", "pgd"],
            "'pgd' is in --alone and is not in --attack",
        ),
        (
            lambda folder: [write(folder), "--attack", "fgsm", "--alone", "cw"],
            "choose from fgsm, or add it to --attack",
        ),
        (
            lambda folder: [write(folder), "--attack", "fgsm", "--surrogate", folder],
            "--surrogate is given, but transfer, the only attack that uses it, is not in",
        ),
        (
            lambda folder: [write(folder), "--fresh", "two-step-l2l"],
            "--fresh is given, but fresh, the only attack that uses it, is not in --attack",
        ),
        (
            lambda folder: [write(folder), "--attack", "transfer"],
            "--attack transfer gives no attack on given: transfer needs --surrogate, own",
        ),
        (
            lambda folder: [write(folder, "pgm"), "--attack", "own", "transfer"],
            "--attack own transfer gives no attack on given",
        ),
        (
            lambda folder: [write(folder), "--surrogate", write(folder / "s")],
            "surrogate s is given itself: attacks through it",
        ),
        (
            lambda folder: [write(folder, dataset="folder"), "--data-dir", folder / "photos"],
            "photos: name the folder with --data-dir, as for its training",
        ),
        (
            lambda folder: [write(folder), "--norm", "l2"],
            "norm is l2 and there is no epsilon: given was trained for 0.2 in linf",
        ),
        (
            lambda folder: [write(folder, norm="l2"), "--attack", "fgsm", "cw"],
            "cw attacks in L∞, and norm is 'l2': leave it out",
        ),
        (lambda folder: [nan(folder)], "NaN or infinite on 12 of 12 clean images"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Any],
    tmp_path: Path,
    arguments: Callable[[Path], list[object]],
    message: str,
) -> None:
    assert message in one_line(run(*arguments(tmp_path / "given")))


def test_a_run_that_is_begun_anew_leaves_no_earlier_figures_to_go_on_from(
    run: Callable[..., Any], tmp_path: Path, applications: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of a network may have been changed, which its checksum does not tell."""
    few = [write(tmp_path / "mine"), write(tmp_path / "other", seed=1), "--attack", "fgsm"]
    assert run(*few).status == 0
    monkeypatch.setattr(applications("robust_eval"), "evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*few, "--resume")
    assert len([*(tmp_path / "out").glob("*/*.pt")]) == 4
    with pytest.raises(ZeroDivisionError):
        run(*few)
    assert not [*(tmp_path / "out").glob("*/*.pt")]
