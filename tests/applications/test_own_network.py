"""A network of one's own, trained by `adv_training.py` and attacked by `robust_eval.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bilevel.robustness import load_trained
from tests.applications.conftest import one_line

MODULE = """
from torch import nn

from bilevel.robustness import load_trained, small_cnn


def make(channels, classes):
    return nn.Sequential(small_cnn(channels, classes))


class Viewed(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).view(len(x), -1))


def viewed(channels, classes):
    return Viewed(nn.Conv2d(channels, 4, 3), nn.Linear(144, classes))


def trained():
    return load_trained("run/two-step-l2l", allow_import=True).model


def untrained():
    return make(1, 10)


def text():
    return "a network"
"""
FEW = ["--test-size", 12, "--curve-size", 8, "--points", 3, "--queries", 3]
ATTACKS = [*FEW, "--attack", "fgsm", "own", "pgm-3"]


@pytest.fixture
def eval_app(
    applications: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The evaluation, in a folder with a module of networks."""
    app = applications("robust_eval")
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return app


def records(kind: str) -> list[dict[str, Any]]:
    content = json.loads(Path("out/results.json").read_text())
    return [record for record in content["results"] if record["record"] == kind]


def test_it_is_trained_saved_and_attacked(
    app: ModuleType, eval_app: ModuleType, call: Callable[..., Any]
) -> None:
    own = "--smoke --model my_networks:make --method two-step-l2l --out run"
    ended = call(app, *own.split())
    assert ended.status == 0, ended.err
    trained = load_trained("run/two-step-l2l", allow_import=True)
    assert trained.about.model == "my_networks:make"
    assert call(app, *own.split(), "--resume").status == 0
    command = [*ATTACKS, "--out", "out"]
    refused = one_line(call(eval_app, "run/two-step-l2l", *command))
    assert "weights of my_networks:make" in refused
    assert "--allow-import" in refused
    assert call(eval_app, "run/two-step-l2l", "--allow-import", *command).status == 0
    (before,) = records("summary")
    assert before["trained_epsilon"] == 0.2
    assert "own two-step-l2l" in {record["attack"] for record in records("attack")}
    # By a function that returns it with its weights, of whose training nothing is known.
    given = ["my_networks:trained", "--dataset", "digits", "--epsilon", 0.2]
    assert call(eval_app, *given, *command).status == 0
    (after,) = records("summary")
    assert after["classifier"] == "trained"
    assert (after["clean"], after["trained_epsilon"]) == (before["clean"], None)


def test_one_that_reads_the_memory_layout(
    app: ModuleType, eval_app: ModuleType, call: Callable[..., Any]
) -> None:
    own = "--smoke --model my_networks:viewed --method two-step-l2l --out run"
    ended = call(app, *own.split())
    assert ended.status == 0, ended.err
    ended = call(eval_app, "run/two-step-l2l", "--allow-import", *ATTACKS, "--out", "out")
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_attacked_in_either_norm(
    eval_app: ModuleType, call: Callable[..., Any], norm: str
) -> None:
    command = [*ATTACKS, "transfer", "--surrogate", "other=my_networks:untrained", "--out", "out"]
    given = ["my_networks:untrained", "--dataset", "digits", "--epsilon", 0.1, "--norm", norm]
    ended = call(eval_app, *given, *command)
    assert ended.status == 0, ended.err
    (summary,) = records("summary")
    assert (summary["norm"], summary["trained_epsilon"]) == (norm, None)
    named = [record["attack"] for record in records("attack")]
    assert named == ["FGSM", "PGM-3", "FGSM on other", "PGM-10 on other"]
    assert "trained for an unknown ε" in Path("out/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("my_networks:trained", "there is no dataset: name the images"),
        ("my_networks:untrained --dataset digits", "there is no epsilon, and it is not known"),
        ("my_networks:missing --dataset digits", "cannot be imported (AttributeError: "),
        ("your_networks:make --dataset digits", "cannot be imported (ModuleNotFoundError: "),
        ("my_networks:make --dataset digits --epsilon 0.1", "evaluation nothing, since the"),
        ("my_networks:text --dataset digits", "returned an object of type str: "),
        ("a=my_networks:untrained nowhere/pgm --dataset digits", "cannot read weights from"),
    ],
)
def test_what_cannot_be_attacked(
    eval_app: ModuleType, call: Callable[..., Any], arguments: str, message: str
) -> None:
    assert message in one_line(call(eval_app, *arguments.split()))


@pytest.mark.usefixtures("eval_app")
def test_one_that_is_not_there_cannot_be_trained(app: ModuleType, call: Callable[..., Any]) -> None:
    refused = one_line(call(app, "--smoke", "--model", "my_networks:missing"))
    assert "my_networks:missing cannot be imported (AttributeError: " in refused
