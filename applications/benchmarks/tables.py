"""Prints the results of adversarial training and of step costs as Markdown tables.

    python applications/benchmarks/tables.py

They are the tables of ``docs/adversarial_training.md`` and ``docs/speed.md``; the README has the
digits without ranges and Table 3 without the counted columns.
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
    """Accuracies in per cent and times of training methods, over seeds."""
    accuracies = {
        "clean": "clean",
        "pgm20": "PGM-20",
        "pgm100": "PGM-100",
        "own_attacker": "own attacker",
    }
    times = {"seconds_per_epoch": "s/epoch", "ratio_to_pgm": "÷ PGM"}
    rows = []
    for same_method in zip(*runs, strict=True):
        row = [same_method[0]["method"]]
        row += [per_cent([record[key] for record in same_method]) for key in accuracies]
        row += [summary([record[key] for record in same_method]) for key in times]
        rows.append(row)
    return tables.table(["method", *accuracies.values(), *times.values()], rows)


def per_cent(shares: Sequence[float | None]) -> str:
    """The summary of accuracies, in per cent."""
    return summary([None if share is None else 100 * share for share in shares], decimals=1)


def summary(values: Sequence[float | None], decimals: int = 3) -> str:
    """A mean with its range, or the one value there is."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(set(known)) == 1:
        return f"{known[0]:.{decimals}f}"
    middle, low, high = (f"{f(known):.{decimals}f}" for f in (mean, min, max))
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()
