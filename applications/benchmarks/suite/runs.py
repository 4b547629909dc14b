"""Results of training runs, over seeds: accuracies and training times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import sub, truediv
from statistics import fmean
from typing import Any

from bilevel.experiment.tables import cell, markdown
from suite.steps import way

Record = Mapping[str, Any]
Target = tuple[str, str, float | None]
"""A figure, what is aimed at, and what was measured."""

ACCURACIES = {
    "clean": "clean",
    "pgm20": "PGM-20",
    "pgm100": "PGM-100",
    "left_after_apgdce": "… and APGD-CE",
    "worst_case": "… and APGD-T",
}


def runs_of(records: Iterable[Record]) -> list[Record]:
    """The records of training runs."""
    return [one for one in records if "worst_case" in one]


def over_seeds(runs: Iterable[Record]) -> list[Record]:
    """A record for all seeds of a run: means, and in ``ranges`` least and greatest accuracies."""
    kinds: dict[tuple[str, ...], list[Record]] = {}
    for run in runs:
        kinds.setdefault((run["model"], named(run), way_of(run)), []).append(run)
    found: list[Record] = []
    for seeds in kinds.values():
        values = {key: [run[key] for run in seeds] for key in (*ACCURACIES, "seconds")}
        means = {key: fmean(of_seeds) for key, of_seeds in values.items()}
        ranges = {key: (min(of_seeds), max(of_seeds)) for key, of_seeds in values.items()}
        found.append({**seeds[0], **means, "seeds": len(seeds), "ranges": ranges})
    return found


def named(run: Record) -> str:
    """The method, and its attacker where that is on record."""
    start = "warm start" if run.get("warm_start") else None
    return ", ".join(filter(None, (run["method"], run.get("attacker"), start)))


def way_of(record: Record) -> str:
    """How the networks of a record computed, in words."""
    return way(record["precision"], record["compiled"], record.get("graphs", False))


def trained(runs: Sequence[Record]) -> str:
    """A table of accuracies under attack and training times."""
    kinds = over_seeds(runs)
    rows = [
        [
            named(one),
            one["precision"],
            str(one["seeds"]),
            *(accuracy(one, key) for key in ACCURACIES),
            f"{one['seconds']:.1f}",
            cell(time_to_pgm(one, kinds)),
        ]
        for one in kinds
    ]
    titles = "method", "precision", "seeds", *ACCURACIES.values(), "training, s", "÷ PGM-10"
    return markdown(list(titles), rows)


def accuracy(run: Record, key: str) -> str:
    """An accuracy in per cent, with the range over seeds."""
    least, greatest = run["ranges"][key]
    spread = f" ({100 * least:.1f}–{100 * greatest:.1f})" if run["seeds"] > 1 else ""
    return f"{100 * run[key]:.1f}{spread}"


def time_to_pgm(run: Record, runs: Sequence[Record]) -> float | None:
    """The training time divided by that of PGM-10 for the same network in the same way."""
    alike = [one for one in runs if one["model"] == run["model"] and way_of(one) == way_of(run)]
    pgm = next((one for one in alike if named(one) == "pgm"), None)
    return run["seconds"] / pgm["seconds"] if pgm else None


def reached_by_runs(records: Sequence[Record]) -> Iterator[Target]:
    """The targets of ResNet-18's worst case and training time, for each attacker."""
    runs = [one for one in runs_of(records) if one["model"] == "resnet18" and one["compiled"]]
    pgm = chosen(runs, "pgm", "bf16")
    for attacker in ("wide", "two-layer", "two-layer, warm start"):
        learned = chosen(runs, f"two-step-l2l, {attacker}", "bf16")
        gain = paired("worst_case", learned, pgm, sub)
        yield f"worst case of two-step-l2l, {attacker}, − pgm, resnet18", "≥ 0", gain
        ratio = paired("seconds", learned, pgm, truediv)
        yield f"training time of two-step-l2l, {attacker}, ÷ pgm, resnet18", "≤ 0.45", ratio
    rounded, exact = (chosen(runs, "two-step-l2l, wide", one) for one in ("bf16", "float32"))
    for key, what in (("clean", "clean accuracy"), ("worst_case", "worst case")):
        change = paired(key, rounded, exact, lambda a, b: abs(a - b))
        yield f"{what} of two-step-l2l, resnet18: bf16 − float32", "≤ 0.005", change


def chosen(runs: Iterable[Record], which: str, precision: str) -> list[Record]:
    """The runs of that name, of all seeds."""
    return [one for one in runs if named(one) == which and one["precision"] == precision]


def paired(
    key: str,
    these: Sequence[Record],
    those: Sequence[Record],
    compare: Callable[[float, float], float],
) -> float | None:
    """The mean over common seeds of a comparison of a figure of two kinds of runs."""
    found = [compare(a[key], b[key]) for a in these for b in those if a["seed"] == b["seed"]]
    return fmean(found) if found else None
