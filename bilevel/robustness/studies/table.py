"""The table of a study's results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from bilevel.experiment.tables import Table, cell
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.tolerance import share

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


def one_answer(images: ImageSet) -> tuple[str, float]:
    """The best of the classifiers that give all images the same answer.

    Args:
        images: The test images.

    Returns:
        Its answer, and its accuracy, which no attack changes.

    Example:
        >>> images = ImageSet(torch.zeros(4, 1, 2, 2).byte(), torch.tensor([0, 1, 1, 1]), "ab")
        >>> one_answer(images)
        ('b', 0.75)
    """
    label = images.labels.mode().values
    return images.classes[int(label)], share(images.labels == label)


def print_one_answer(images: ImageSet, records: Sequence[dict[str, Any]]) -> None:
    """Prints what one answer would reach if a classifier is no better, or none is under PGM-100.

    A difference within the standard error of that accuracy counts as none.

    Args:
        images: The test images.
        records: One for each method.
    """
    answer, right = one_answer(images)
    chance = right + math.sqrt(right * (1 - right) / len(images))
    if min(r["clean"] for r in records) <= chance or max(r["pgm100"] for r in records) <= chance:
        found = f"is right for {cell(right)} of the test images, under any attack"
        Console().print(f"always answering {answer} {found}", markup=False)


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Adds to each record the time of an epoch divided by that of PGM, None if PGM was not run.

    Args:
        records: One for each method.
    """
    pgm_seconds = next((r["seconds_per_epoch"] for r in records if r["method"] == "pgm"), None)
    for record in records:
        ratio = record["seconds_per_epoch"] / pgm_seconds if pgm_seconds else None
        record["ratio_to_pgm"] = ratio
