"""`applications/gail.py`: the games it builds, its run from end to end, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bilevel.imitation import (
    MountainCarExpert,
    demonstrate,
    save_demonstrations,
)
from tests.applications.conftest import one_line

ENV = "MountainCar-v0"
SMALL = ["--steps", 320, "--environments", 4, "--demonstrations", 2, "--jobs", 1]


@pytest.fixture
def module(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("gail")


@pytest.fixture
def games(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("imitating.games")


@pytest.fixture
def setting(games: ModuleType) -> Callable[..., Any]:
    def setting(method: str, updater: str = "coordinate", skip: float | None = 0.1) -> Any:
        return games.Setting(ENV, method, 0, updater, skip, "finish", None, 2, 0.01, None, 64, 4)

    return setting


def test_the_smoke_run(module: ModuleType, call: Callable[..., Any], tmp_path: Path) -> None:
    ended = call(module, "--smoke", "--out", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content) == {"config", "environment", "results"}
    by_method = {record["method"]: record for record in content["results"]}
    assert list(by_method) == ["gail", "l2l-gail", "bc", "constant"]
    assert all(not isinstance(v, dict | list) for r in content["results"] for v in r.values())
    assert by_method["constant"]["objective"] == pytest.approx(-2 * 0.693147, abs=1e-4)
    assert by_method["bc"]["return"] > -140  # pushing along the velocity is soon learned
    assert (tmp_path / "figure-6.png").read_bytes().startswith(b"\x89PNG")
    assert "| cloning |" in (tmp_path / "tables.md").read_text()
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2  # three methods that iterate, twice
    assert rows[0]["return"] == "-200"
    for name in ("gail-0", "l2l-gail-coordinate-0", "bc-0", "constant-0"):
        assert (tmp_path / ENV / name / "policy.safetensors").exists()
    assert list((tmp_path / ENV / "gail-0" / "tensorboard").iterdir())


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    module: ModuleType,
    call: Callable[..., Any],
    applications: Any,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(applications("imitating.runs"), "PART", 2)
    one = [*SMALL, "--method", "l2l-gail"]
    assert call(module, *one, "--iterations", 4, "--out", tmp_path / "whole").status == 0
    assert call(module, *one, "--iterations", 2, "--out", tmp_path / "parts").status == 0
    on = call(module, *one, "--iterations", 4, "--out", tmp_path / "parts", "--resume")
    assert on.status == 0
    whole, parts = ((tmp_path / name / "curves.csv").read_text() for name in ("whole", "parts"))
    assert whole == parts
    other = call(module, *one, "--resume", "--max-kl", 0.02, "--out", tmp_path / "parts")
    assert "was played with another max_kl" in one_line(other)


def test_runs_side_by_side_are_those_one_after_the_other(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    base = [*SMALL, "--method", "gail", "--seeds", 2, "--iterations", 2]
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        ended = call(module, *base, "--jobs", jobs, "--out", out)
        assert (ended.status, ended.err) == (0, "")
    one, two = ((tmp_path / jobs / "curves.csv").read_text() for jobs in "12")
    assert one == two
    assert len(one.splitlines()) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("method", "updater"),
    [
        ("gail", "coordinate"),
        ("l2l-gail", "coordinate"),
        ("l2l-gail", "block"),
        ("constant", "coordinate"),
    ],
)
def test_every_game_moves_the_policy(
    games: ModuleType, setting: Callable[..., Any], method: str, updater: str
) -> None:
    shown = demonstrate(ENV, MountainCarExpert(), 1).shown()
    apprentice = games.make_apprentice(setting(method, updater), *shown)
    first = apprentice.iterate()
    second = apprentice.iterate()
    assert second["kl"] > 0
    assert (first["norm"] == second["norm"]) == (method == "constant")


def test_updaters_start_as_a_gradient_step_or_do_nothing(
    games: ModuleType, setting: Callable[..., Any]
) -> None:
    for updater in ("coordinate", "block", "dense"):
        for skip in (0.1, None):
            update = games.make_updater(setting("l2l-gail", updater, skip), 33)
            y, slope = torch.randn(2, 33)
            moved, _ = update(y, slope, None, None)
            torch.testing.assert_close(moved, y + (skip or 0) * slope)


def test_the_dense_updater_asks_for_its_memory(
    games: ModuleType, applications: Callable[[str], ModuleType], monkeypatch: Any
) -> None:
    assert games.memory("dense", 2561) == pytest.approx(5.5e9, rel=0.01)
    assert games.memory("block", 2561) < 1e8
    memory = applications("imitating.memory")
    memory.check_memory(1)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(memory.BilevelError, match=r"GiB are free: .*--updater block"):
        memory.check_memory(10**15)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(memory.Confirm, "ask", lambda *_, **__: True)
    memory.check_memory(10**15)


def test_what_is_said_of_a_run(applications: Callable[[str], ModuleType], setting: Any) -> None:
    tables, runs = applications("imitating.tables"), applications("imitating.runs")
    expert = demonstrate(ENV, MountainCarExpert(), 5)
    curve = torch.cat(
        [torch.full((30,), -200.0), torch.full((30,), -110.0), torch.full((9,), -190.0)]
    )
    curves = dict.fromkeys(("objective", "accuracy", "norm"), torch.ones(69)) | {"return": curve}
    run = runs.Run(setting("gail"), curves, torch.tensor([-120.0, -130.0]), 0.2)
    told = tables.record(run, expert)
    assert told["return"] == -125
    assert told["reached"] == 38  # eight of ten are enough for −132: −128
    assert told["worst_after"] == pytest.approx((-110 - 9 * 190) / 10)
    table = tables.tabulate(ENV, [told, {**told, "reached": None, "return": -200.0}])
    assert table.rows[0][:3] == ("GAIL", "-162.5 ± 53.0", "1 of 2, 38 to 38")


def test_an_episode_is_drawn(
    games: ModuleType, applications: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    pytest.importorskip("pygame")
    applications("imitating.frames").film(tmp_path / "car.gif", ENV, MountainCarExpert())
    assert (tmp_path / "car.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--env MountainCar-v7", "no environment 'MountainCar-v7': did you mean MountainCar"),
        ("--env FrozenLake-v1", "policies read vectors"),
        ("--env", "no env is given"),
        ("--method", "no method is given"),
        ("--method trpo", "invalid choice 'trpo'"),
        ("--iterations 0", "iterations is 0: .*give 1 or more"),
        ("--seeds 0", "seeds is 0: .*give 1 or more"),
        ("--seed -1", "seed is -1: .*give 0 or more"),
        ("--follower-lr 0", "follower_lr is 0.0: .*give a number above 0"),
        ("--max-norm 0", "max_norm is 0.0: Y would be a point"),
        ("--max-kl 0", "max_kl is 0.0: TRPO could not move"),
        ("--demonstrations 1000", "1000 demonstrations are asked for and 100 are there"),
        ("--every 0", "every 0th pair is no choice"),
        ("--expert nowhere.npz", "there are no demonstrations nowhere.npz"),
        ("--resume", "no run of these in .*leave out --resume"),
    ],
)
def test_bad_input_gets_one_line(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, arguments: str, told: str
) -> None:
    line = one_line(call(module, "--smoke", "--out", tmp_path, *arguments.split()))
    assert re.search(told, line), line


def test_demonstrations_of_another_environment_are_refused(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    save_demonstrations(tmp_path / "car.npz", demonstrate(ENV, MountainCarExpert(), 2))
    line = one_line(
        call(
            module,
            "--smoke",
            "--out",
            tmp_path,
            "--env",
            "CartPole-v1",
            "--expert",
            tmp_path / "car.npz",
        )
    )
    assert "shows MountainCar-v0, not CartPole-v1" in line
