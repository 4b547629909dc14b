"""The paper's tables with our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bilevel.experiment.tables import Table, cell
from reproduce_lib.paper import (
    POINTS,
    STARTS,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_6,
    TABLE_7_8,
    TRANSFERS,
    Cell,
)


class Measured:
    """Our results by row.

    Args:
        evaluated: The records of ``robust_eval.py``.
        trained: The record of the training application for each row.
    """

    def __init__(
        self, evaluated: Sequence[Mapping[str, Any]], trained: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.trained = trained
        self.summaries = {r["classifier"]: r for r in evaluated if r["record"] == "summary"}
        self.attacks = [r for r in evaluated if r["record"] == "attack"]

    def clean(self, row: str) -> float | None:
        """Clean accuracy in per cent."""
        return 100 * self.summaries[row]["clean"] if row in self.summaries else None

    def worst(self, row: str) -> float | None:
        """Accuracy under all attacks together in per cent."""
        return 100 * self.summaries[row]["worst_case"] if row in self.summaries else None

    def under(self, row: str, attack: str) -> float | None:
        """Accuracy under one attack alone in per cent."""
        record = self._found(row, attack)
        return 100 * record["alone"] if record else None

    def points(self, row: str) -> int | None:
        """Points per image of the random attack, which its name tells."""
        record = self._found(row, "random")
        return int(record["attack"].removeprefix("random ")) if record else None

    def _found(self, row: str, attack: str) -> Mapping[str, Any] | None:
        for record in self.attacks:
            named = record["attack"] == attack or record["attack"].startswith(f"{attack} ")
            exact = not attack.startswith("PGM") or record["attack"] == attack
            if record["classifier"] == row and named and exact and record["alone"] is not None:
                return record
        return None

    def seconds(self, row: str) -> float | None:
        """Training time per epoch in seconds."""
        return self.trained[row]["seconds_per_epoch"] if row in self.trained else None


def starts(count: int) -> str:
    """A line that compares the random starts of our attacks with the paper's.

    Args:
        count: Ours.

    Returns:
        The line.
    """
    return (
        f"Random starts of PGM in Tables 2, 4 and 6, of which the worst counts: {count} here, "
        f"{STARTS} in the paper."
    )


def tables(measured: Measured, dataset: str) -> list[Table]:
    """The paper's tables with our figures beside the paper's.

    Args:
        measured: Our results.
        dataset: ``cifar10`` or ``cifar100``, for the paper's figures.

    Returns:
        Tables 2, 3, 4, 6 and 7 or 8, as far as the paper has them for the dataset, and a table of
        all classifiers.
    """
    white = {
        "Table 2: white-box": TABLE_2,
        "Table 4: adversarial interpolation": TABLE_4,
        "Table 6: slim attacker": TABLE_6,
    }
    found = [_white_box(title, t[dataset], measured) for title, t in white.items() if dataset in t]
    found.insert(1, _times(TABLE_3[dataset], measured))
    number = {"cifar10": 7, "cifar100": 8}[dataset]
    found.append(_transfer(f"Table {number}: black-box", TABLE_7_8[dataset], measured))
    return [*found, _controls(measured)]


def _white_box(title: str, cells: Sequence[Cell], measured: Measured) -> Table:
    header = ("classifier", "attack", "clean", "paper", "robust", "paper", "worst case")
    rows = tuple(
        (
            one.row,
            _attack(one, measured),
            cell(measured.clean(one.row), ".1f"),
            cell(one.clean, ".1f"),
            cell(measured.under(one.row, one.attack), ".1f"),
            cell(one.robust, ".1f"),
            cell(measured.worst(one.row), ".1f"),
        )
        for one in cells
    )
    return Table(title, header, rows)


def _attack(one: Cell, measured: Measured) -> str:
    """The attack's name; that of the random one tells how many points ours and the paper's has."""
    if one.attack != "random":
        return one.attack
    return f"random, {cell(measured.points(one.row), ',')} points (paper: {POINTS:,})"


def _times(paper: Mapping[str, float], measured: Measured) -> Table:
    header = ("classifier", "s/epoch", "÷ PGM", "paper ÷ PGM")
    ours = measured.seconds("pgm")
    rows = []
    for row, seconds in paper.items():
        own = measured.seconds(row)
        ratio = own / ours if own is not None and ours else None
        rows.append(
            (row, cell(own, ".1f"), cell(ratio, ".2f"), cell(seconds / paper["pgm"], ".2f"))
        )
    return Table("Table 3: one epoch's time", header, tuple(rows))


def _transfer(title: str, paper: Mapping[str, Sequence[float]], measured: Measured) -> Table:
    rows = tuple(
        (
            row,
            *(
                f"{cell(measured.under(row, attack), '.1f')} ({figure:.2f})"
                for attack, figure in zip(TRANSFERS, figures, strict=True)
            ),
        )
        for row, figures in paper.items()
    )
    columns = (" from ".join(name.split(" on surrogate-")) for name in TRANSFERS)
    return Table(f"{title}, ours (the paper's)", ("classifier", *columns), rows)


def _controls(measured: Measured) -> Table:
    """Every classifier under all attacks, controls included; not in the paper."""
    header = ("classifier", "clean", "PGM-20", "PGM-100", "worst case", "trustworthy")
    rows = tuple(
        (
            row,
            cell(measured.clean(row), ".1f"),
            cell(measured.under(row, "PGM-20"), ".1f"),
            cell(measured.under(row, "PGM-100"), ".1f"),
            cell(measured.worst(row), ".1f"),
            "yes" if summary["trustworthy"] else "no",
        )
        for row, summary in measured.summaries.items()
    )
    return Table("Every classifier under all attacks together", header, rows)
