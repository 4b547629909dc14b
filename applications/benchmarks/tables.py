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
    print(f"Table 3\n\n{tables.table_3(read('step_cost'), read('gpu_suite'))}\n")
    print(f"Targets\n\n{tables.targets(read('gpu_suite'))}\n")
    for name in ("digits", "digits-float32", "cifar10-jpeg75"):
        seeds = [read(path) for path in sorted((RESULTS / name).glob("seed-*"))]
        print(f"{name}\n\n{training(seeds or [read(name)])}\n")
    for name in ("step_cost", "step_cost-small", "gpu_suite", "gpu_suite-small"):
        records = read(name)
        for title, table in tables.sections(records):
            print(f"{name}: {title}\n\n{table}\n")
        for record in records:
            if "ratio" in record:
                print(f"{record['method']}: {tables.spread(record, 'ratio')}\n")


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
