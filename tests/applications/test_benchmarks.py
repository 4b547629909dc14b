"""`applications/benchmarks/`: what a measurement prints is what the documentation shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.applications.conftest import Suite, write

TABLES = {
    "monitor": "monitor",
    "network_games": "cost between networks",
    "schedules": "cost of a schedule",
    "through_the_attacker": "through the attacker",
}


@pytest.fixture(scope="module")
def benchmarks(applications: Callable[[str], ModuleType]) -> Iterator[Callable[[str], ModuleType]]:
    """A benchmark's module by name."""
    folder = str(Path(__file__).parents[2] / "applications" / "benchmarks")
    sys.path.insert(0, folder)
    yield applications
    sys.path.remove(folder)


@pytest.mark.parametrize("script", TABLES)
def test_the_screen_shows_the_columns_of_the_documentation(
    benchmarks: Callable[[str], ModuleType], call: Callable[..., Any], tmp_path: Path, script: str
) -> None:
    header = benchmarks("tables").TABLES[TABLES[script]]().splitlines()[0]
    ended = call(benchmarks(script), "--smoke", "--out", tmp_path)
    assert ended.status == 0, ended.err
    assert header.replace("1,000 stacked", "10 stacked") in ended.out
    assert json.loads((tmp_path / "results.json").read_text())["results"]


def test_what_the_battery_costs(suite: Suite, call: Callable[..., Any], tmp_path: Path) -> None:
    """`battery.py`: nothing more than its attacks, each on fewer images."""
    folder, out = write(tmp_path / "mine"), tmp_path / "out"
    assert call(suite("battery"), folder, "--smoke", "--out", out).status == 0
    *costs, whole = json.loads((out / "results.json").read_text())["results"]
    alone, together = (
        {one["attack"]: one["passes"] for one in costs if one["how"] == how}
        for how in ("alone", "in battery")
    )
    assert alone.keys() == together.keys() == {"FGSM", "PGM-20"}
    assert all(together[attack] <= alone[attack] for attack in alone)
    assert whole["passes"] == pytest.approx(sum(together.values()) / max(alone.values()))
