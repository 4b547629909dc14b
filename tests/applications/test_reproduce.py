"""`applications/reproduce.py`: every row can be trained, what is there is kept, tables compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bilevel import BilevelError
from bilevel.robustness import Attacker, make_solver
from tests.applications.conftest import one_line


@pytest.fixture
def module(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("reproduce")


def test_the_smoke_run_and_what_is_there_is_kept(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    ended = call(module, "--smoke", "--out", tmp_path)
    assert ended.status == 0, ended.err
    assert "Table 2" in ended.out
    out = tmp_path / "smoke-trial"
    tables = (out / "tables.md").read_text()
    for text in (tables, ended.out):
        assert "which the worst counts: 1 here, 5 in the paper" in text
    for number in (2, 3, 4, 6, 7):
        assert f"### Table {number}:" in tables
    for name in ("figures-3-10.png", "figures-7-8.png", "evaluation/examples.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    weights = out / "pgm" / "pgm" / "classifier.safetensors"
    written = os.stat(weights).st_mtime_ns
    before = json.loads((out / "results.json").read_text())["results"]
    assert call(module, "--smoke", "--out", tmp_path).status == 0
    assert os.stat(weights).st_mtime_ns == written
    assert json.loads((out / "results.json").read_text())["results"] == before


def test_rows_trained_otherwise_are_refused_and_added_rows_attacked(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A surrogate more is another battery, which is run anew without a word."""
    quick = {"epochs": 1, "model": "small-cnn", "attacker": "two-layer", "attacker_width": 4}
    sizes = {"train_size": 40, "validation_size": 20, "test_size": 10}
    evaluation = {"test_size": 8, "curve_size": 4, "points": 2}
    smoke = module.SCALES["smoke"]
    scale = replace(smoke, training=quick | sizes, evaluation=evaluation, step=0.1)
    monkeypatch.setitem(module.SCALES, "smoke", scale)
    monkeypatch.setattr(module, "BATTERY", ("fgsm", "pgm-20", "transfer"))
    monkeypatch.setattr(module, "ALONE", ())
    monkeypatch.setattr(module, "CW_ROWS", ())
    given = ("--out", tmp_path, "--no-figures", "--row", "pgm")
    assert call(module, *given).status == 0
    weights = tmp_path / "smoke" / "pgm" / "pgm" / "classifier.safetensors"
    written = os.stat(weights).st_mtime_ns
    ended = call(module, *given, "surrogate-fgsm")
    assert ended.status == 0, ended.err
    assert os.stat(weights).st_mtime_ns == written
    records = json.loads((tmp_path / "smoke" / "results.json").read_text())["results"]
    attacks = {r["attack"] for r in records if r["record"] == "attack"}
    assert attacks == {"FGSM", "PGM-20", "FGSM on surrogate-fgsm", "PGM-10 on surrogate-fgsm"}
    refused = one_line(call(module, *given, "--seed", 1))
    assert "pgm is a run with seed = 0, this one has seed = 1:" in refused


def test_every_row_of_the_tables_is_trained_by_some_run(
    module: ModuleType, applications: Callable[[str], ModuleType]
) -> None:
    data = applications("reproduce_lib.paper")
    cells = [*data.TABLE_2.values(), *data.TABLE_4.values(), *data.TABLE_6.values()]
    named = {cell.row for table in cells for cell in table}
    named |= {
        row for table in (data.TABLE_3, data.TABLE_7_8) for rows in table.values() for row in rows
    }
    named |= {name.split(" on ")[1] for name in data.TRANSFERS}
    assert named <= set(module.ROWS)


@pytest.mark.parametrize(
    ("row", "weights"), [("two-step-l2l", 1_747_851), ("slim-two-step-l2l", 1_434_359)]
)
def test_the_scale_paper_trains_the_attackers_of_the_paper(
    module: ModuleType, tmp_path: Path, row: str, weights: int
) -> None:
    """Tables 1 and 5; the number of weights is that of the authors' networks."""
    args = module.Args(scale="paper")
    recipe = module.training(args, module.SCALES["paper"], row, tmp_path).recipe()
    solver = make_solver(
        "two-step-l2l",
        eps=recipe.epsilon,
        channels=3,
        attacker=Attacker(recipe.attacker, recipe.attacker_width),
    )
    assert sum(weight.numel() for weight in solver.parameters()) == weights


def test_a_trial_of_any_scale_draws_figures_7_and_8_in_seconds(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(
        module.limit_cycles, "draw_figures_7_8", lambda path, step: drawn.append(step)
    )
    for smoke in (True, False):
        args = module.Args(scale="paper", smoke=smoke, figures=False)
        module.figures(args, module.SCALES["paper"], tmp_path, [])
    assert drawn == [module.SCALES["smoke"].step, 1e-4]


def test_a_cell_finds_its_own_attack(module: ModuleType) -> None:
    def record(attack: str, alone: float | None) -> dict[str, object]:
        return {"record": "attack", "classifier": "pgm", "attack": attack, "alone": alone}

    evaluated = [
        record("PGM-20 margin", 0.1),
        record("PGM-20", 0.2),
        record("own two-step-l2l", 0.3),
        record("random 1000", 0.4),
        record("CW", None),
        {"record": "summary", "classifier": "pgm", "clean": 0.9, "worst_case": 0.05},
    ]
    measured = module.Measured(evaluated, {})
    attacks = ("PGM-20", "PGM-20 margin", "own", "random", "CW", "PGM-100")
    found = [measured.under("pgm", attack) for attack in attacks]
    assert found == [20, 10, 30, 40, None, None]
    assert (measured.clean("pgm"), measured.worst("pgm")) == (90, 5)
    assert measured.clean("other") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "pgd"], "there is no row 'pgd'"),
        (["--row", "surrogate-pgm"], "there is no classifier to attack; add one, such as pgm"),
        (["--scale", "large"], "--scale"),
        (["--seed", "-1"], "seed is -1"),
        (["--device", "gpu"], "device 'gpu' is not available"),
    ],
)
def test_bad_input_is_one_line(
    module: ModuleType,
    call: Callable[..., Any],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    assert message in one_line(call(module, *arguments, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", ["--seed -1", "--device gpu", "--dataset folder --data-dir there/is/none"]
)
def test_bad_input_removes_nothing(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, arguments: str
) -> None:
    kept = tmp_path / "smoke" / "pgm" / "classifier.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    one_line(call(module, "--no-resume", *arguments.split(), "--out", tmp_path))
    assert kept.exists()


def test_a_run_that_goes_on_is_not_removed(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    monkeypatch.delattr(module, "train_missing")  # which would begin
    kept = tmp_path / "smoke" / "pgm" / "checkpoint.pt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"
    code += "; print(flush=True); input()"
    command = [sys.executable, "-c", code, tmp_path / "smoke" / ".lock"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()  # it holds the lock
        refused = one_line(call(module, "--no-resume", "--out", tmp_path))
        other.communicate(b"\n")
    assert "another run writes to " in refused
    assert kept.exists()


def test_what_a_run_that_has_ended_left_is_removed(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not the lock, which is this run's by then."""
    out = tmp_path / "smoke"
    for name in (".lock", "tables.md", "pgm/checkpoint.pt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()

    def train(*given: Any) -> None:
        raise BilevelError(f"{sorted(path.name for path in out.iterdir())} are left")

    monkeypatch.setattr(module, "train_missing", train)
    assert "['.lock'] are left" in one_line(call(module, "--no-resume", "--out", tmp_path))
    (out / "kept").touch()
    assert "['.lock', 'kept'] are left" in one_line(call(module, "--out", tmp_path))


def test_a_figure_that_fails_costs_no_table(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise BilevelError("no figure")

    for name, function in {
        "train_missing": lambda *given: {},
        "evaluate": lambda *given: None,
        "read": lambda folder: [],
        "figures": fail,
    }.items():
        monkeypatch.setattr(module, name, function)
    assert "no figure" in one_line(call(module, "--out", tmp_path))
    assert "### Table 2:" in (tmp_path / "smoke" / "tables.md").read_text()
    assert (tmp_path / "smoke" / "results.json").exists()
