"""What `applications/gail.py` says of its runs: records, tables and curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from bilevel.imitation import Demonstrations

METRICS = ("return", "episodes", "objective", "accuracy", "norm", "kl", "explained_variance")


@pytest.fixture
def tables(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("gail_lib.tables")


@pytest.fixture
def figure(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("gail_lib.figure")


@pytest.fixture
def run(applications: Callable[[str], ModuleType]) -> Callable[..., Any]:
    """A run of 12 iterations, at which each metric counts from 1, unless it is given."""
    games, runs = applications("gail_lib.games"), applications("gail_lib.runs")

    def run(method: str = "gail", **curves: torch.Tensor) -> Any:
        rest = (0, "coordinate", None, "neutral", None, 2, 0.01, 0.01, 0.99, 0.98, None, 64, 4)
        curves = dict.fromkeys(METRICS, torch.arange(1.0, 13.0)) | curves
        played = torch.tensor([-120.0, -130.0])
        return runs.Run(games.Setting("Car-v0", method, *rest), curves, played, 0.2)

    return run


@pytest.fixture
def expert() -> Demonstrations:
    """Two episodes, of returns −1 and −3."""
    rewards, lengths = -torch.ones(4), torch.tensor([1, 3])
    return Demonstrations("Car-v0", torch.zeros(4, 1), rewards, rewards, lengths, *2 * [lengths])


def test_a_record_tells_the_episodes_spread_and_the_experts_mean(
    tables: ModuleType, run: Callable[..., Any], expert: Demonstrations
) -> None:
    told = tables.record(run(), expert)
    assert told["expert"] == -2
    assert told["return_std"] == pytest.approx(math.sqrt(50))


def test_metrics_are_of_the_last_iterations(
    tables: ModuleType, run: Callable[..., Any], expert: Demonstrations
) -> None:
    told = tables.record(run(accuracy=torch.tensor([9.0, 9.0, *10 * [0.5]])), expert)
    assert (told["objective"], told["accuracy"], told["norm"]) == (7.5, 0.5, 7.5)


def test_each_method_has_a_row_of_its_own_runs(tables: ModuleType) -> None:
    def record(method: str, **told: float | None) -> dict[str, Any]:
        found = {"return": -100.0, "reached": 5, "worst_after": -8.0, "objective": -1.0}
        return {"method": method, "expert": -2.0, **found, "accuracy": 0.7, "norm": 9.0, **told}

    never = {"return": -200.0, "reached": None, "worst_after": None, "objective": -3.0}
    records = [record("gail"), record("gail", **never), record("constant", objective=-5.0)]
    assert tables.tabulate("Car-v0", records).rows == (
        ("GAIL", "−150.0 ± 70.7", "1 of 2, 5 to 5", "−8", "−2.00 ± 1.41", "0.70", "9.0"),
        ("constant D", "−100.0", "1 of 1, 5 to 5", "−8", "−5.00", "0.70", "9.0"),
    )


def test_iterations_in_the_file_are_counted_from_one(
    tables: ModuleType, run: Callable[..., Any], tmp_path: Path
) -> None:
    tables.write_curves(tmp_path / "curves.csv", [run()])
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert [(row["iteration"], row["norm"]) for row in rows] == [
        (str(n), str(n)) for n in range(1, 13)
    ]


def test_a_curve_is_the_mean_over_seeds_in_a_band_from_lowest_to_highest(
    figure: ModuleType,
) -> None:
    axes = Figure().subplots()
    seeds = ([1.0, math.nan, 4.0], [2.0, 3.0, 0.0], [6.0, 5.0, 2.0])
    figure._curve(axes, [torch.tensor(seed) for seed in seeds], "gail")
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axes.lines[0].get_ydata().tolist() == [3, 4, 2]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(x, y) for x, y in band.tolist()} == {(1, 1), (1, 6), (2, 3), (2, 5), (3, 0), (3, 4)}


def test_accuracies_of_all_iterations_count_the_same(
    figure: ModuleType, run: Callable[..., Any]
) -> None:
    """Also of those in which no episode ended."""
    accuracy = torch.tensor([0.5, 1.0, *10 * [0.0]])
    smooth = figure._accuracy(run(accuracy=accuracy, episodes=torch.zeros(12)))
    assert smooth[:6].tolist() == pytest.approx([0.5, 0.75, 0.5, 0.375, 0.3, 0.2])


def test_windows_in_which_no_episode_has_ended_are_passed_over(
    tables: ModuleType, run: Callable[..., Any], expert: Demonstrations
) -> None:
    """Else the lowest mean is NaN, and no table is written."""
    once = torch.arange(12) == 0
    told = tables.record(run(**{"episodes": once.float(), "return": -torch.ones(12)}), expert)
    assert (told["reached"], told["worst_after"]) == (1, -1.0)
