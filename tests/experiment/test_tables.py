"""Tables: one alignment on the screen and as Markdown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bilevel.experiment.tables import Table, cell, markdown, mean_std, write_markdown

TABLE = Table("Accuracy", ("method", "note", "clean"), [["pgm", "a", "0.5"], ["plain", "2", "–"]])


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    assert markdown(TABLE.header, TABLE.rows).splitlines()[1] == "| --- | --- | ---: |"
    signed = [["x", "-0.5", "−0.5", "**2**"], ["y", "+0.5", "–", "1"]]
    assert markdown("abcd", signed).splitlines()[1] == "| --- | ---: | ---: | ---: |"
    assert markdown(("a", "b"), [("x|y", "1")]).endswith("\n| x\\|y | 1 |")
    assert markdown(("a", "b"), []) == "| a | b |\n| --- | ---: |"


def test_a_table_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    TABLE.print()
    shown = capsys.readouterr().out
    assert "│ pgm    │ a    │   0.5 │" in shown
    assert "Accuracy" in shown


def test_tables_in_a_file(tmp_path: Path) -> None:
    write_markdown(tmp_path / "tables.md", [TABLE, TABLE], "# Results", "A line.")
    text = (tmp_path / "tables.md").read_text()
    assert text == f"# Results\n\nA line.\n\n{TABLE.markdown()}\n\n{TABLE.markdown()}\n"


def test_cells() -> None:
    assert [cell(value) for value in (None, "x", 0.5, 0.0)] == ["–", "x", "0.500", "0.000"]
    assert mean_std([-1.0, -3.0], 1) == "−2.0 ± 1.4"
    assert mean_std([2.0, 2.0], 1) == mean_std([2.0], 1) == "2.0"
    assert mean_std([2.0, 2.01], 1) == "2.0"
    assert mean_std([-0.01, 0.01], 1) == "0.0"
    assert mean_std([0.0, 3000.0], 0) == "1,500 ± 2,121"
    assert mean_std([], 1) == "–"
    assert mean_std([math.nan, 1.0], 1) == "nan"
    assert mean_std([math.inf, 1.0], 1) == "inf"


def test_numbers_that_are_lacking_leave_a_column_of_numbers() -> None:
    rows = [["pgm", "0.5", ""], ["plain", "not measured", "2"], ["none", "–", "3"]]
    assert markdown("abc", rows).splitlines()[1] == "| --- | ---: | ---: |"


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Table("[bold]A", ("[b]", "x"), [["pgm [linf]", "[/x]"]]).print()
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[bold]A", "[b]", "pgm [linf]", "[/x]"))


def test_on_a_narrow_screen_nothing_is_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two methods might look the same, and a number like another one."""
    monkeypatch.setenv("COLUMNS", "30")
    rows = [[f"two-step-grad-{name}", "0.12345"] for name in ("l2l", "only-l2l")]
    Table("Accuracy", ("method", "clean accuracy"), rows).print()
    cells = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    names, numbers = (
        "".join(cell.strip() for cell in column) for column in zip(*cells, strict=True)
    )
    assert names == "".join(name for name, _ in rows)
    assert numbers == 2 * "0.12345"
