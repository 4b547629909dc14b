"""The tables and the frontier of the documentation are what the committed results say."""

from __future__ import annotations

import importlib
import re
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


def test_what_all_seeds_gave_is_told_of_a_learned_follower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stands among what each of them gave."""
    minmax = tables.minmax
    told, records = minmax.learned_follower(), minmax.read("learned_follower")
    monkeypatch.setattr(minmax, "read", lambda _: records[::-1])
    assert minmax.learned_follower() == told


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A panel of two seeds of PGM-10 and one of ours, beside what does not belong there."""
    kind = {"model": "wrn-34-10", "precision": "bf16", "compiled": True, "seconds": 100.0}
    kind |= dict.fromkeys(("clean", "pgm100", "left_after_apgdce", "worst_case"), 0.9)
    kind["pgm20"] = 0.5
    ours = {**kind, "method": "two-step-l2l", "attacker": "wide", "seconds": 60.0, "pgm20": 0.45}
    runs = [
        {**kind, "method": "pgm"},
        {**kind, "method": "pgm", "seconds": 200.0, "pgm20": 0.55},
        {**kind, "method": "pgm", "model": "resnet18"},
        ours,
        {**ours, "precision": "float32"},  # in which PGM-10 was not trained
    ]
    monkeypatch.setattr(frontier, "read", lambda _: runs)
    return frontier.PANELS[0]


def test_a_point_is_the_time_of_a_run_beside_pgm_and_its_accuracy(panel: Any) -> None:
    pgm, learned = frontier.measured(panel)
    assert (pgm.name, pgm.time, pgm.accuracy) == ("pgm", 1, pytest.approx(52.5))
    assert (learned.name, learned.time, learned.accuracy) == ("two-step-l2l, wide", 0.4, 45)


def test_points_stand_where_their_time_and_accuracy_are(panel: Any) -> None:
    """The paper's are hollow."""
    axes = Figure().subplots()
    drawn = frontier.draw(axes, panel)
    for name, point in {
        "pgm (published)": (1, 47.04),
        "grad-l2l (published)": (617.5 / 1310.8, 51.17),
        "pgm (ours)": (1, 52.5),
        "two-step-l2l, wide (ours)": (0.4, 45),
    }.items():
        assert drawn[name].get_offsets().tolist() == [pytest.approx(point)]
        assert len(drawn[name].get_facecolor()) == ("ours" in name)
    assert [line.get_ydata()[0] for line in axes.lines] == [
        accuracy for _, accuracy in panel.limits
    ]
    box = axes.viewLim.get_points().T.tolist()
    for points in drawn.values():
        assert all(a < z < b for (a, b), z in zip(box, points.get_offsets()[0], strict=True))


def test_an_updater_that_was_trained_at_a_rate_of_its_own_says_so() -> None:
    """In the table of Ho and Ermon's settings, whose discriminator has steps of 0.01."""
    imitation, table = tables.imitation, tables.TABLES["settings of ho and ermon on mountaincar"]()
    assert {one["follower_lr"] for one in imitation.read("gail-ho-ermon")} == {0.01}
    for name, rate, told in (("dense-rate", 1e-5, "1e-5"), ("dense", None, "1e-6")):
        assert {one["follower_lr"] for one in imitation.read(f"gail-ho-ermon-{name}")} == {rate}
        assert f"| L2L-GAIL, dense, by steps of {told} |" in table


def test_all_results_name_their_command() -> None:
    folder = Path(frontier.__file__).parent
    text = (folder / "README.md").read_text()
    for results in (folder / "results").iterdir():
        assert re.search(f"`{results.name}[`/]", text), results.name  # not that of a longer name
