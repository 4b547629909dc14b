"""Prints the committed results as the Markdown tables of the README and the documentation.

python applications/benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parent / "results"
Records = list[dict[str, Any]]


def main() -> None:
    """Prints every table whose results are there."""
    digits = [read(path) for path in sorted(RESULTS.glob("digits/*/results.json"))]
    if digits:
        print(f"Digits, ε = 0.2, {len(digits)} seeds: mean (least to greatest)\n")
        print_training(digits)
    cifar = RESULTS / "cifar10-jpeg75" / "results.json"
    if cifar.exists():
        print("CIFAR-10 (JPEG-75)\n")
        print_training([read(cifar)])
    for path in sorted(RESULTS.glob("step_cost*/results.json")):
        print(f"{path.parent.name}\n")
        print_step_cost(read(path))


def read(path: Path) -> Records:
    """The records of a results file."""
    records: Records = json.loads(path.read_text())["results"]
    return records


def print_training(runs: Sequence[Records]) -> None:
    """Accuracies and times of training methods, over seeds."""
    columns = {
        "clean": "clean",
        "pgm20": "PGM-20",
        "pgm100": "PGM-100",
        "own_attacker": "own attacker",
        "seconds_per_epoch": "s/epoch",
        "ratio_to_pgm": "÷ PGM",
    }
    rows = []
    for same_method in zip(*runs, strict=True):
        values = ([record[key] for record in same_method] for key in columns)
        rows.append([same_method[0]["method"], *map(summary, values)])
    print_table(["method", *columns.values()], rows)


def print_step_cost(records: Records) -> None:
    """Counted and measured cost of a step."""
    rows = []
    for record in records[:-1]:
        counted = f"{record['step_in_classifier_forwards']:.2f} F"
        ratio = spread(record, "ratio_to_pgm")
        rows.append([record["method"], record["schedule"], record["expected"], counted, ratio])
    print_table(["method", "schedule", "should cost", "counted", "÷ PGM-10"], rows)
    print(f"{records[-1]['method']}: {spread(records[-1], 'ratio')}\n")


def spread(record: dict[str, Any], name: str) -> str:
    """A median with its range."""
    return f"{record[name]:.3f} ({record[f'{name}_min']:.3f} to {record[f'{name}_max']:.3f})"


def summary(values: Sequence[float | None]) -> str:
    """A mean with its range, or the one value there is."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{mean(known):.3f} ({min(known):.3f} to {max(known):.3f})"


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str | None]]) -> None:
    """A Markdown table."""
    for row in (titles, ["---"] * len(titles), *rows):
        print("| " + " | ".join(cell or "" for cell in row) + " |")
    print()


if __name__ == "__main__":
    main()
