"""The tables and curves of `applications/reproduce.py`: each figure stands where it belongs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "applications/benchmarks/results"
TRAINED = {
    "pgm": {"seconds_per_epoch": 8.0},
    "plain": {"seconds_per_epoch": 1.0},
    "grad-l2l": {"seconds_per_epoch": 4.0},
}


@pytest.fixture
def lib(applications: Callable[[str], ModuleType]) -> Callable[[str], ModuleType]:
    return lambda name: applications(f"reproduce_lib.{name}")


def rows(lib: Callable[[str], ModuleType], title: str, *evaluated: dict[str, Any]) -> list[Any]:
    """The rows of a table of CIFAR-10, with their cells by the names of the columns."""
    tables = lib("tables")
    found = tables.tables(tables.Measured(evaluated, TRAINED), "cifar10")
    [table] = [one for one in found if one.title.startswith(title)]
    return [dict(zip(table.header, row, strict=True)) | {"cells": row} for row in table.rows]


def attack(name: str, alone: float) -> dict[str, Any]:
    return {"record": "attack", "classifier": "pgm", "attack": name, "alone": alone}


def summary(classifier: str, *, trustworthy: bool) -> dict[str, Any]:
    told = {"classifier": classifier, "trustworthy": trustworthy}
    return {"record": "summary", "clean": 0.9, "worst_case": 0.25, **told}


def test_ours_is_left_of_the_papers(lib: Callable[[str], ModuleType]) -> None:
    told = rows(lib, "Table 2", summary("pgm", trustworthy=True), attack("PGM-20", 0.5))
    assert told[1]["cells"] == ("pgm", "PGM-20", "90.0", "87.3", "50.0", "47.0", "25.0")


def test_the_random_attack_tells_its_points_and_the_papers(
    lib: Callable[[str], ModuleType],
) -> None:
    found = {**attack("random 1000", 0.5), "classifier": "grad-l2l"}
    told = {
        row["classifier"]: row for row in rows(lib, "Table 2", found) if "points" in row["attack"]
    }
    ours = ("random, 1,000 points (paper: 100,000)", "50.0")
    assert (told["grad-l2l"]["attack"], told["grad-l2l"]["cells"][4]) == ours
    assert told["two-step-l2l"]["attack"] == "random, – points (paper: 100,000)"


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_committed_tables_are_those_of_the_committed_results(
    lib: Callable[[str], ModuleType], scale: str
) -> None:
    tables, folder = lib("tables"), RESULTS / f"reproduce-{scale}"
    records = json.loads((folder / "results.json").read_text())["results"]
    trained = {one["row"]: one for one in records if one["record"] == "training"}
    committed = (folder / "tables.md").read_text()
    for table in tables.tables(tables.Measured(records, trained), "cifar10"):
        if scale == "smoke" or "time" not in table.title:  # of runs that shared two cores
            assert table.markdown() in committed
    assert committed.count(tables.starts(1)) == 1


def test_times_are_ratios_to_those_of_pgm(lib: Callable[[str], ModuleType]) -> None:
    told = {row["classifier"]: row["cells"][1:] for row in rows(lib, "Table 3")}
    assert told["grad-l2l"] == ("4.0", "0.50", "0.47")  # 617.5 ÷ 1310.8
    assert told["naive-l2l"] == ("–", "–", "0.22")


def test_each_transferred_attack_is_beside_the_papers(lib: Callable[[str], ModuleType]) -> None:
    told = rows(lib, "Table 7", attack("PGM-10 on surrogate-plain", 0.75))
    assert told[2]["cells"][:4] == ("pgm", "– (83.80)", "75.0 (84.73)", "– (84.33)")


def test_every_classifier_is_under_all_attacks(lib: Callable[[str], ModuleType]) -> None:
    both = summary("pgm", trustworthy=False), summary("plain", trustworthy=True)
    told = rows(lib, "Every classifier", *both, attack("PGM-20", 0.5), attack("PGM-100", 0.4))
    assert told[0]["cells"] == ("pgm", "90.0", "50.0", "40.0", "25.0", "no")
    assert told[1]["cells"] == ("plain", "90.0", "–", "–", "25.0", "yes")


@pytest.fixture
def draw(
    lib: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Figure]:
    """The figure of curves, each row's points the same for both quantities."""
    drawn: list[Figure] = []
    monkeypatch.setattr(lib("figures"), "save_png", lambda _, figure: drawn.append(figure))

    def draw(**curves: dict[int, float]) -> Figure:
        evaluated = [
            {"record": "curve", "quantity": name, "classifier": row, "at": at, "accuracy": accuracy}
            for name in ("ε", "iterations")
            for row, points in curves.items()
            for at, accuracy in points.items()
        ]
        lib("figures").draw_curves(tmp_path / "curves.png", evaluated, [*curves])
        return drawn[-1]

    return draw


def test_a_gain_is_what_a_row_has_more_than_pgm(draw: Callable[..., Figure]) -> None:
    figure = draw(pgm={1: 0.8, 10: 0.4}, ours={1: 0.7, 10: 0.6})
    for gains in figure.axes[2:]:
        assert [*gains.lines[1].get_xdata()] == [1, 10]
        assert [*gains.lines[1].get_ydata()] == pytest.approx([-0.1, 0.2])


def test_the_longest_curve_is_shown_to_its_end(draw: Callable[..., Figure]) -> None:
    figure = draw(pgm={1: 0.8, 10: 0.4}, ours={1: 0.7, 10: 0.6, 50: 0.5})
    assert [axes.get_xlim() for axes in figure.axes] == [(1, 50)] * 4


@pytest.mark.parametrize("failed", [["ours"], ["pgm"], ["pgm", "ours"]], ids=" and ".join)
def test_a_curve_that_failed_is_left_out(draw: Callable[..., Figure], failed: list[str]) -> None:
    """It has no points; without those of PGM there is no gain."""
    curves = {row: {} if row in failed else {1: 0.8, 10: 0.4} for row in ("pgm", "ours")}
    figure = draw(**curves)
    for axes in figure.axes[:2]:
        assert [line.get_label() for line in axes.lines] == [r for r in curves if curves[r]]
    for axes in figure.axes[2:]:
        assert all(len(line.get_xdata()) == 2 * bool(curves["pgm"]) for line in axes.lines)
