"""The tables and the frontier of the documentation are what the committed results say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "applications" / "benchmarks")
    tables, frontier = map(importlib.import_module, ("tables", "frontier"))

PAGES = {str(page.relative_to(tables.ROOT)): page.read_text() for page in tables.pages()}


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- table" in PAGES[page]])
def test_a_page_shows_the_results(page: str) -> None:
    remedy = "python applications/benchmarks/tables.py writes the tables"
    assert tables.filled(PAGES[page]) == PAGES[page], remedy


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_stands_on_one_page(name: str) -> None:
    places = [page for page, text in PAGES.items() if f"<!-- table {name}: begin -->\n|" in text]
    assert len(places) == 1


def test_a_figure_that_was_changed_by_hand_is_found() -> None:
    assert "| 75.5 |" in PAGES["README.md"]
    forged = PAGES["README.md"].replace("| 75.5 |", "| 76.5 |")
    assert tables.filled(forged) == PAGES["README.md"]


def test_what_was_not_measured_leaves_its_column_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = tables.costs
    whole, eager = costs.cpu(), [r for r in costs.read("step_cost-small") if not r.get("compiled")]
    monkeypatch.setattr(costs, "read", lambda _: eager)
    for before, after in zip(whole.splitlines()[2:], costs.cpu().splitlines()[2:], strict=True):
        *names, float32, _, bf16, _ = before.strip("| ").split(" | ")
        assert after.strip("| ").split(" | ") == [*names, float32, "–", bf16, "–"]


def test_the_frontier_is_drawn_from_the_results(tmp_path: Path) -> None:
    frontier.main(frontier.Args(out=tmp_path / "frontier.png"))
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


@pytest.mark.parametrize("panel", frontier.PANELS, ids=lambda panel: panel.model)
def test_points_in_the_frontier_are_told_apart(panel: Any) -> None:
    drawn = frontier.draw(Figure().subplots(), panel)
    assert len(drawn) > 3
    looks = [(*m.get_paths()[0].vertices.flat, *m.get_facecolor().flat) for m in drawn.values()]
    assert len(set(looks)) == len(drawn)


def test_all_results_name_their_command() -> None:
    folder = Path(frontier.__file__).parent
    text = (folder / "README.md").read_text()
    for results in (folder / "results").iterdir():
        assert f"`{results.name}" in text, results.name
