"""`--smoke` makes a run shorter, never longer, and bad values are refused as without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.applications.conftest import one_line

Load = Callable[[str], ModuleType]


def test_epochs_and_images_of_a_training(app: ModuleType) -> None:
    cpu = torch.device("cpu")
    assert app.Args(smoke=True).recipe().epochs == 2
    assert app.Args(smoke=True, epochs=7).recipe().epochs == 2
    small = app.Args(smoke=True, epochs=1, validation_size=30, test_size=20)
    assert small.recipe().epochs == 1
    assert [*map(len, small.load(cpu))] == [256, 30, 20]
    assert [*map(len, app.Args(smoke=True).load(cpu))] == [256, 64, 64]


def test_sizes_of_an_evaluation(applications: Load) -> None:
    app = applications("robust_eval")
    names = ("test_size", "curve_size", "points", "queries", "fresh_steps")
    largest, given = (16, 16, 20, 20, 5), (12, 8, 3, 4, 2)
    for sizes, expected in ((given, given), (largest, largest), ((None, 99, 99, 99, 9), largest)):
        args = app.Args((), smoke=True, **dict(zip(names, sizes, strict=True)))
        assert tuple(getattr(args, name) for name in names) == expected


def test_iterations_of_the_other_applications(
    applications: Load, tmp_path: Path, call: Callable[..., Any]
) -> None:
    """The configuration that the results are written with."""
    given = {
        "maml": ["--method", "joint", "--iterations", 3],
        "learned_follower": ["--horizon", 1, "--iterations", 2, "--batch", 3, "--seeds", 1],
        "hyper_cleaning": ["--adjoint", "unrolled", "--iterations", 2, "--steps", 5],
    }
    for name, arguments in given.items():
        out = tmp_path / name
        ended = call(applications(name), "--smoke", "--out", out, *arguments)
        assert ended.status == 0, ended.err
        config = json.loads((out / "results.json").read_text())["config"]
        for option, value in zip(arguments[::2], arguments[1::2], strict=True):
            if isinstance(value, int):
                assert config[option.removeprefix("--")] == value


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adv_training", ["--epochs", 0], "epochs is 0"),
        ("adv_training", ["--test-size", 0], "test_size is 0"),
        ("adv_training", ["--validation-size", -1], "validation_size is -1"),
        ("robust_eval", ["FOLDER", "--curve-size", 0], "curve_size is 0"),
    ],
)
def test_bad_values_are_refused(
    applications: Load,
    tmp_path: Path,
    call: Callable[..., Any],
    name: str,
    arguments: list[object],
    message: str,
) -> None:
    ended = call(applications(name), "--smoke", "--out", tmp_path / "run", *arguments)
    assert message in one_line(ended)
