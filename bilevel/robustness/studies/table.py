"""The table of a study's results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {
    "method": "method",
    "clean": "clean",
    "pgm20": "PGM-20",
    "pgm100": "PGM-100",
    "own_attacker": "own attacker",
    "seconds_per_epoch": "s/epoch",
    "ratio_to_pgm": "÷ PGM",
}


def print_table(title: str, records: Sequence[dict[str, Any]]) -> None:
    """Prints a table with a row for each method.

    Args:
        title: The title.
        records: One for each method.
    """
    table = Table(title=title)
    for key, column in COLUMNS.items():
        table.add_column(column, justify="left" if key == "method" else "right")
    for record in records:
        table.add_row(*(cell(record[key]) for key in COLUMNS))
    Console().print(table)


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Adds to each record the time of an epoch divided by that of PGM, None if PGM was not run.

    Args:
        records: One for each method.
    """
    pgm_seconds = next((r["seconds_per_epoch"] for r in records if r["method"] == "pgm"), None)
    for record in records:
        ratio = record["seconds_per_epoch"] / pgm_seconds if pgm_seconds else None
        record["ratio_to_pgm"] = ratio


def cell(value: str | float | None) -> str:
    """The text of a cell: three decimals for a number, a dash for None.

    Args:
        value: The value.

    Returns:
        The text.

    Example:
        >>> cell("pgm"), cell(0.5), cell(None)
        ('pgm', '0.500', '–')
    """
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3f}"
