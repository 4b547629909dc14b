"""The table of a study's results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bilevel.experiment.tables import Table, cell

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
    rows = [[cell(record[key]) for key in COLUMNS] for record in records]
    Table(title, [*COLUMNS.values()], rows).print()


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Adds to each record the time of an epoch divided by that of PGM, None if PGM was not run.

    Args:
        records: One for each method.
    """
    pgm_seconds = next((r["seconds_per_epoch"] for r in records if r["method"] == "pgm"), None)
    for record in records:
        ratio = record["seconds_per_epoch"] / pgm_seconds if pgm_seconds else None
        record["ratio_to_pgm"] = ratio
