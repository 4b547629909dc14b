"""Hyper-cleaning, the cost of a hypergradient, and MAML."""

from __future__ import annotations

from collections.abc import Sequence

from bilevel.experiment.tables import cell, markdown
from tabulated.reading import Record, per_cent, ranged, read, seeds, significant

WEIGHTS = {
    "uniform": "all 1 (the labels as they are)",
    "right only": "correct labels only",
    "held out": "held-out images only",
    "unrolled": "`Unrolled()`",
    "compiled": "`Unrolled(compile=True)`",
    "recomputed": "`Unrolled(recompute=True)`",
    "truncated": "`Unrolled(truncate=20)`",
    "sampled": "`Sampled(0.1, samples=8)`",
    "implicit": '`Implicit("cg")`',
    "gmres": '`Implicit("gmres")`',
    "neumann": '`Implicit("neumann")`',
    "penalty": "`Penalty(100)`",
}


def cleaning() -> str:
    """Hyper-cleaning with all adjoints, one seed."""
    rows = [
        [
            WEIGHTS[one["weights"]],
            *(per_cent([one.get(key)]) for key in ("accuracy", "found", "false_alarms")),
            ranged([one.get("auc")]),
            ranged([one.get("peak_mib")], 2),
        ]
        for one in read("hyper_cleaning/seed-0")
    ]
    titles = "weights", "accuracy", "found", "false alarms", "AUC", "peak memory, MiB"
    return markdown(titles, rows)


def cleaning_by_seeds() -> str:
    """The same of adjoints that were run with three seeds, with many and few images held out."""
    many, few = (
        [{one["weights"]: one for one in records} for records in seeds(f"hyper_cleaning/{name}-*")]
        for name in ("seed", "few")
    )
    rows = []
    for name in (name for name in WEIGHTS if all(name in run for run in many)):
        row = [WEIGHTS[name]]
        for runs in (many, few):
            row.append(per_cent([run[name]["accuracy"] for run in runs]))
            row.append(ranged([run[name].get("auc") for run in runs]))
        rows.append(row)
    titles = "weights", "accuracy, 431", "AUC, 431", "accuracy, 100", "AUC, 100"
    return markdown(titles, rows)


def costs(records: Sequence[Record], model: str, kind: str) -> str:
    """Time, error and memory of each implementation of a hypergradient."""
    rows = [
        [
            _ours_bold(one["way"]),
            "not installed" if "missing" in one else significant(one["cpu_ms"], 3),
            cell(one.get("÷ by hand"), ".2f"),
            cell(one.get("÷ TorchOpt"), ".2f"),
            significant(one.get("error"), 1),
            significant(one.get("peak_mib"), 3),
        ]
        for one in records
        if (one["model"], one["kind"]) == (model, kind)
    ]
    titles = "CPU, ms", "÷ by hand", "÷ TorchOpt", "error", "peak, MiB"
    return markdown(["", *titles], rows)


def _ours_bold(way: str) -> str:
    return f"**{way}**" if way.startswith("bilevel") else way


def maml() -> str:
    """MAML: errors on unseen waves after so many steps."""
    adjoints = {"maml": "`Unrolled()`", "fomaml": "`Detached()`", "joint": "no inner steps"}
    steps = (0, 1, 5, 20)

    def errors(one: Record) -> list[str]:
        return [f"{one[f'error_{count}']:.2f}" for count in steps]

    rows = [[one["method"], adjoints[one["method"]], *errors(one)] for one in read("maml")]
    return markdown(["method", "adjoint", *("0 steps", "1", "5", "20")], rows)
