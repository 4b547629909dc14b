"""`applications/limit_cycles.py`: what is measured is what theory predicts, and it is all drawn."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.applications.conftest import one_line

SCHEDULES = (
    "simultaneous",
    "alternating",
    "extragradient",
    "optimistic",
    "proximal-point",
    "lookahead",
    "consensus",
    "symplectic-adjustment",
    "competitive-gradient",
)


@pytest.fixture
def module(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("limit_cycles")


@pytest.fixture
def play(module: ModuleType, tmp_path: Path) -> Callable[..., list[Any]]:
    """The runs of one setting."""

    def play(game: str, step: float, start: tuple[float, float], steps: int, *names: str) -> Any:
        args = module.Args((game,), names, (step,), start, steps, out=tmp_path)
        games = {game: module.make_game(game, 0)}
        [runs] = module.play_all(args, games, torch.device("cpu")).values()
        return runs

    return play


def test_the_smoke_run_and_what_is_there_is_kept(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    small = ["--schedule", "simultaneous", "optimistic", "--out", tmp_path]
    games = ["--game", "bilinear", "forsaken", "simplex"]
    ended = call(module, "--smoke", *small, *games)
    assert (ended.status, ended.err) == (0, "")
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content) == {"config", "environment", "results"}
    assert len(content["results"]) == 10
    assert all(not isinstance(v, dict | list) for r in content["results"] for v in r.values())
    assert len(list(tmp_path.glob("*-step-*.png"))) == 5
    for picture in tmp_path.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "limit-cycles.png").exists()
    assert "| optimistic | 0.948683 | 0.948683 |" in (tmp_path / "tables.md").read_text()
    assert "simplex" in ended.out
    assert "–" in ended.out  # no prediction there

    kept = {file: os.stat(file).st_mtime_ns for file in tmp_path.glob("trajectories/*.pt")}
    one = ["--game", "simplex", "--resume"]
    assert call(module, "--smoke", *small, *one).status == 0
    assert {file: os.stat(file).st_mtime_ns for file in kept} == kept
    again = json.loads((tmp_path / "results.json").read_text())["results"]
    assert again == [r for r in content["results"] if r["game"] == "simplex"]


def test_every_game_is_played_from_its_own_start(
    module: ModuleType, play: Callable[..., list[Any]]
) -> None:
    for settings in module.SETTINGS.values():
        for setting in settings:
            [run] = play(setting.game, setting.step, setting.start, 3, "extragradient")
            assert run.at.tolist() == [0, 1, 2, 3]
            assert (run.distance > 0).all()


@pytest.mark.parametrize("game", ["bilinear", "monotone"])
def test_measured_is_predicted(play: Callable[..., list[Any]], game: str) -> None:
    runs = play(game, 0.3, (1.0, 0.0), 200, *SCHEDULES)
    assert [run.schedule for run in runs] == list(SCHEDULES)
    for run in runs:
        assert run.measured == pytest.approx(run.predicted, abs=1e-3), run.schedule


def test_the_rest_of_a_mixed_start_is_shared_by_the_other_strategies(
    play: Callable[..., list[Any]],
) -> None:
    [run] = play("simplex", 0.3, (0.8, 0.1), 1, "extragradient")
    assert run.path[0].tolist() == pytest.approx([0.8, 0.1, 0.1, 0.1, 0.45, 0.45])


def test_a_record_tells_of_the_end(play: Callable[..., list[Any]]) -> None:
    [run] = play("bilinear", 0.3, (1.0, 0.0), 7, "simultaneous")
    told = run.record()
    assert told["steps"] == 7
    assert told["distance"] == pytest.approx(1.09**3.5)


def test_a_factor_close_to_one_is_told_by_its_difference(module: ModuleType) -> None:
    factors = 1 + 2e-9, 1 - 2e-9, 1.0, 0.948683, None
    told = [module.format_factor(factor) for factor in factors]
    assert told == ["1 + 2.0e-09", "1 − 2.0e-09", "1.000000", "0.948683", "–"]


def test_a_turn_of_the_paper_ends_where_it_began(module: ModuleType, tmp_path: Path) -> None:
    """Once around with steps of 0.02: the radius has grown by √(1+η²) a step."""
    module.draw_figures_7_8(tmp_path / "figures-7-8.png", 0.02)
    assert (tmp_path / "figures-7-8.png").read_bytes().startswith(b"\x89PNG")
    run = module.Run.load(next(tmp_path.glob("limit-cycle/trajectories/*-simultaneous.pt")))
    assert float(run.distance[-1]) == pytest.approx((1 + 4e-4) ** (314 / 2), rel=1e-9)
    assert run.path[-1].tolist() == pytest.approx([1.0648, 0], abs=5e-3)


def test_the_reproduction_draws_that_turn(
    applications: Callable[[str], ModuleType], module: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reproduce, drawn = applications("reproduce"), []
    monkeypatch.setattr(module, "draw_figures_7_8", lambda *arguments: drawn.append(arguments))
    for name, step in (("smoke", 3e-2), ("paper", 1e-4)):
        reproduce.figures(reproduce.Args(row=()), reproduce.SCALES[name], tmp_path, [])
        assert drawn.pop() == (tmp_path / "figures-7-8.png", step)


def test_forsaken_arrives_from_nearby_and_circles_from_afar(
    play: Callable[..., list[Any]],
) -> None:
    [nearby] = play("forsaken", 0.05, (0.1, 0.4), 1500, "optimistic")
    assert nearby.path[-1].tolist() == pytest.approx([0.0780, 0.4119], abs=2e-4)
    assert nearby.measured == pytest.approx(nearby.predicted, abs=1e-4)
    [afar] = play("forsaken", 0.05, (1.0, 1.0), 1500, "optimistic")
    assert afar.distance[500:].min() > 0.5
    assert afar.measured == pytest.approx(1, abs=1e-3)
    assert afar.seen_as == "cycling"


def test_players_who_fly_apart_are_followed_no_further(play: Callable[..., list[Any]]) -> None:
    [apart] = play("bilinear", 2.0, (1.0, 0.0), 1000, "simultaneous")
    assert len(apart.at) < 30
    assert apart.measured == pytest.approx(math.sqrt(5))
    assert apart.seen_as == "diverging"  # before the monitor has seen enough to tell
    [burst] = play("forsaken", 2.0, (3.0, 3.0), 10_000, "simultaneous")  # between two looks
    assert len(burst.at) < 3


def test_a_movie(
    module: ModuleType, applications: Callable[[str], ModuleType], call: Callable[..., Any],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(applications("limit_cycles_lib.animation"), "FRAMES", 3)
    games = ["--game", "bilinear", "simplex", "--step", 0.3, "--steps", 20, "--start", 0.9, 0]
    assert call(module, *games, "--animate", "--out", tmp_path).status == 0
    [movie] = tmp_path.glob("*.gif")
    assert movie.name.startswith("bilinear")
    assert movie.read_bytes().startswith(b"GIF89a")
    assert not (tmp_path / "limit-cycles.png").exists()  # it shows other settings
    before = movie.read_bytes()

    def half(writer: Any) -> None:
        Path(writer.outfile).write_bytes(b"GIF89a")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.animation.PillowWriter.finish", half)
    told = one_line(call(module, *games, "--animate", "--out", tmp_path))
    assert "the older file there is kept" in told
    assert (movie.read_bytes(), list(tmp_path.rglob("*.gif"))) == (before, [movie])


@pytest.mark.parametrize("arguments", ["--steps 3", "--step 0.01 --steps 30"])
def test_a_few_steps_are_drawn_without_arrows(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, arguments: str
) -> None:
    few = ["--game", "bilinear", "--schedule", "simultaneous", *arguments.split()]
    assert call(module, *few, "--out", tmp_path).status == 0
    assert list(tmp_path.glob("*-step-*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--step 0", "the step size is 0.0"),
        ("--step -0.1", "the step size is -0.1"),
        ("--step nan", "the step size is nan"),
        ("--steps 0", "steps is 0: .*give 1, 2"),
        ("--start 1", "--start"),
        ("--start 1 2 3", "parsing --start"),
        ("--start inf 0", "the start .*inf.*give two numbers up to 1e.100"),
        ("--start 1e200 1", "the start .*too far: .*give two numbers up to 1e.100"),
        ("--start 2 0 --game simplex", r"the start \(2.0, 0.0\) of simplex is not on it"),
        ("--start 0 0 --game bilinear", "starts at the equilibrium: .*another --start"),
        ("--game bilinaer", "there is no game 'bilinaer': did you mean bilinear"),
        ("--game chess", "there is no game 'chess': choose from bilinear, "),
        ("--game", "no game is given"),
        ("--schedule adam", "there is no schedule 'adam': choose from simultaneous, "),
        ("--schedule", "no schedule is given"),
        ("--device gpu", "device 'gpu' is not available"),
        ("--seed -1", "seed is -1: "),
        ("--resume", "to resume from: leave out --resume"),
    ],
)
def test_bad_input_is_one_line(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, arguments: str, message: str
) -> None:
    ended = call(module, "--out", tmp_path / "run", *arguments.split())
    assert re.search(message, one_line(ended)), ended.err
    assert not (tmp_path / "run").exists()
