"""Prints the committed results as the Markdown tables of the README and the documentation.

python applications/benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from suite import tables

RESULTS = Path(__file__).parent / "results"
Records = list[dict[str, Any]]


def main() -> None:
    """Prints every table whose results are there."""
    cpu, gpu = read("step_cost"), read("gpu_suite")
    print(f"Table 3\n\n{tables.table_3(cpu, gpu)}\n")
    print(f"Targets\n\n{tables.targets(gpu)}\n")
    for folder in (RESULTS, *sorted(RESULTS.iterdir())):
        runs = [read(path.parent) for path in sorted(folder.glob("seed-*/results.json"))]
        records = read(folder)
        if runs and "pgm20" in runs[0][0]:
            print(f"{folder.name}, {len(runs)} seeds: mean (least to greatest)\n")
            print(training(runs))
        elif records and "own_attacker" in records[0]:
            print(f"{folder.name}\n\n{training([records])}\n")
        for title, table in tables.sections(records):
            print(f"{folder.name}: {title}\n\n{table}\n")
        if records and "ratio_min" in records[-1]:
            print(f"{records[-1]['method']}: {tables.spread(records[-1], 'ratio')}\n")


def read(folder: str | Path) -> Records:
    """The records of a results folder; none where there is none."""
    path = RESULTS / folder / "results.json"
    records: Records = json.loads(path.read_text())["results"] if path.exists() else []
    return records


def training(runs: Sequence[Records]) -> str:
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
    return tables.table(["method", *columns.values()], rows)


def summary(values: Sequence[float | None]) -> str:
    """A mean with its range, or the one value there is."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{mean(known):.3f} ({min(known):.3f} to {max(known):.3f})"


if __name__ == "__main__":
    main()
