"""`applications/ait.py` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bilevel.robustness import Interpolation, Linf, Trainer, examples, load_trained
from bilevel.robustness.training.progress import Progress
from tests.applications.conftest import one_line

TINY = ["--epochs", 1, "--train-size", 40, "--validation-size", 20, "--test-size", 10]


@pytest.fixture
def run(
    applications: Callable[[str], ModuleType], tmp_path: Path, call: Callable[..., Any]
) -> Callable[..., Any]:
    ait = applications("ait")
    return lambda *arguments: call(ait, *TINY, "--out", tmp_path, *arguments)


def test_every_method_is_trained_and_kept(run: Callable[..., Any], tmp_path: Path) -> None:
    settings = ["--sense", "max", "--pairing", "next", "--layer", "trunk", "--epsilon-y", "0.3"]
    assert run("--epsilon", 0.1, *settings).status == 0
    content = json.loads((tmp_path / "results.json").read_text())
    methods = [record["method"] for record in content["results"]]
    assert methods == ["label-smoothing", "ait", "grad-l2l", "two-step-l2l"]
    for method in methods:
        trained = load_trained(tmp_path / method)
        follower = trained.about.follower()
        assert isinstance(follower, Interpolation)
        start = 0.0 if method == "label-smoothing" else 0.1
        assert (follower.sense, follower.pairing, follower.start) == ("max", "next", start)
        assert (trained.solver is not None) == method.endswith("l2l")


def test_the_figure_shows_label_smoothing_under_pgm(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no attack of its own; the others are shown under theirs."""
    shown = {}

    def spy(name: str, model: Any, follower: Any, solver: Any, *rest: Any) -> list[Any]:
        shown[name] = (type(follower), solver.steps)
        return examples(name, model, follower, solver, *rest)

    monkeypatch.setattr("bilevel.robustness.studies.study.examples", spy)
    assert run("--method", "label-smoothing", "ait").status == 0
    assert shown == {"label-smoothing": (Linf, 20), "ait": (Interpolation, 1)}


def test_the_control_is_selected_as_what_it_is_compared_with(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By accuracy under attack: that on clean images would favour another epoch."""
    selected = []

    class Watched(Trainer):
        def fit(self) -> Progress:
            selected.append(self.validation.monitor)
            return super().fit()

    monkeypatch.setattr("bilevel.robustness.studies.study.Trainer", Watched)
    assert run("--method", "label-smoothing", "ait").status == 0
    assert selected == ["validation_robust"] * 2


def test_a_stopped_run_goes_on_only_as_it_was_begun(run: Callable[..., Any]) -> None:
    assert run("--method", "ait").status == 0
    assert run("--method", "ait", "--resume").status == 0
    assert "epsilon_y = 0.5" in one_line(run("--method", "ait", "--resume", "--epsilon-y", 0.1))


def test_a_method_by_two_names_is_trained_once(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("--method", "ait", "1-step-l2l", "grad-l2l").status == 0
    records = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [record["method"] for record in records] == ["ait", "grad-l2l"]


def test_compiled_networks(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation compiles the classifier for the very batches whose features are asked for next."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert run("--method", "grad-l2l", "--compile", "on", "--validation-size", 10).status == 0
    (record,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert 0 <= record["own_attacker"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "body.0"], "no layer 'body.0': choose from"),
        (["--layer", "trunks"], "no layer 'trunks': did you mean trunk?"),
        (["--method", "aid"], "there is no method 'aid'"),
        (["--method"], "no method is given"),
        (["--epsilon-y", 2], "epsilon_y is 2.0"),
        (["--layer", "nowhere"], "no layer 'nowhere'"),
        (["--pairing", "best"], "--pairing"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Any], tmp_path: Path, arguments: list[object], message: str
) -> None:
    assert message in one_line(run(*arguments))
    assert not list(tmp_path.iterdir())  # before anything is trained
