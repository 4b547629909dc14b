"""What was measured, as Markdown: costs beside the paper's, accuracies beside time, targets."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # where the paper's tables are

from reproduction.paper import TABLE_3

from suite.steps import METHODS

Record = Mapping[str, Any]

PAPER = {name: seconds / TABLE_3["cifar10"]["pgm"] for name, seconds in TABLE_3["cifar10"].items()}
"""Table 3 as ratios: an epoch of WRN-34-10 on CIFAR-10, divided by PGM-10's."""

LEARNED = ("grad-l2l", "two-step-l2l")


def report(records: Sequence[Record], environment: Mapping[str, str]) -> str:
    """All tables that there are figures for."""
    about = ", ".join(environment[key] for key in ("date", "device", "torch"))
    parts = [f"`{environment['command']}`: {about}"]
    steps, runs = of_steps(records), of_runs(records)
    for model in dict.fromkeys(one["model"] for one in steps):
        parts += [f"## A step: {model}", cost([one for one in steps if one["model"] == model])]
    for model in dict.fromkeys(one["model"] for one in runs):
        chosen = [one for one in runs if one["model"] == model]
        parts += [f"## Training: {model}, {chosen[0]['dataset']}", trained(chosen)]
    parts += ["## Targets", targets(records)]
    return "\n\n".join(parts) + "\n"


def of_steps(records: Iterable[Record]) -> list[Record]:
    """The records of timed steps."""
    return [one for one in records if "peak_mib" in one]


def of_runs(records: Iterable[Record]) -> list[Record]:
    """The records of training runs."""
    return [one for one in records if "worst_case" in one]


def cost(steps: Sequence[Record]) -> str:
    """Seconds, ratio to PGM-10, arithmetic and memory of a step."""
    rows = []
    for one in steps:
        single = one["schedule"] == "simultaneous"
        rows.append(
            [
                one["method"],
                one["schedule"],
                ways([(one["precision"], one["compiled"])]),
                METHODS[one["method"]] if single else "",
                f"{one['step_in_classifier_forwards']:.2f}",
                f"{1e3 * one['seconds']:.1f}",
                spread(one, "ratio_to_pgm") if "ratio_to_pgm" in one else "–",
                f"{PAPER[one['method']]:.2f}" if one["method"] in PAPER and not single else "",
                f"{one['flops_per_second'] / 1e12:.3g}",
                f"{one['peak_mib']:.0f}",
            ]
        )
    titles = "method", "schedule", "precision", "should cost", "counted, F", "ms", "÷ PGM-10"
    return table([*titles, "paper ÷ PGM-10", "TFLOP/s", "peak, MiB"], rows)


def trained(runs: Sequence[Record]) -> str:
    """What classifiers withstand, beside the seconds that it took to train them."""
    pgm = next((one["seconds"] for one in runs if one["method"] == "pgm"), None)
    attacks = {
        "clean": "clean",
        "pgm20": "PGM-20",
        "pgm100": "PGM-100",
        "left_after_apgdce": "… and APGD-CE",
        "worst_case": "… and APGD-T",
    }
    rows = [
        [
            one["method"],
            *(f"{100 * one[key]:.2f}" for key in attacks),
            f"{one['seconds']:.1f}",
            f"{one['seconds'] / pgm:.3f}" if pgm else "–",
        ]
        for one in runs
    ]
    return table(["method", *attacks.values(), "training, s", "÷ PGM-10"], rows)


def targets(records: Sequence[Record]) -> str:
    """What is aimed at, and what was reached."""
    rows = [
        [what, aim, "not measured" if value is None else f"{value:.3f}"]
        for what, aim, value in reached(records)
    ]
    return table(["figure", "target", "measured"], rows)


def reached(records: Sequence[Record]) -> Iterable[tuple[str, str, float | None]]:
    """Each figure, its target, and its value where it was measured."""
    wide = Steps(records, "wrn-34-10")
    best = {"precision": "bf16", "compiled": True}
    for method, aim in zip(LEARNED, ("≤ 0.27", "≤ 0.40"), strict=True):
        for precision in ("float32", "tf32", "bf16"):
            way = {"precision": precision, "compiled": precision == "bf16"}
            value = wide.ratio({"method": method, **way}, {"method": "pgm", **way})
            yield f"{method} ÷ pgm, wrn-34-10, {ways([(precision, way['compiled'])])}", aim, value
    for method in LEARNED:
        authors = {"method": method, "schedule": "alternating"}
        value = wide.ratio({"method": method, **best}, authors)
        yield f"{method}: bf16 compiled ÷ float32 eager alternating", "≤ 0.15", value
    rate = next(
        (
            one["flops_per_second"]
            for one in records
            if one["job"] == "matrix rates" and one.get("precision") == "bf16"
        ),
        None,
    )
    plain = wide.find(method="plain", **best)
    share = plain["flops_per_second"] / rate if plain and rate else None
    yield "plain wrn-34-10, share of the bf16 matrix rate", "≥ 0.45", share
    for precision in ("float32", "bf16"):
        way = {"precision": precision, "compiled": precision == "bf16"}
        value = wide.ratio({"method": "two-step-l2l", **way}, {"method": "pgm", **way}, "peak_mib")
        yield f"memory of two-step-l2l ÷ pgm, {precision}", "≤ 1.6", value
    runs = {one["method"]: one for one in of_runs(records) if one["model"] == "resnet18"}
    if {"two-step-l2l", "pgm"} <= set(runs):
        ours, pgm = runs["two-step-l2l"], runs["pgm"]
        gain, share = ours["worst_case"] - pgm["worst_case"], ours["seconds"] / pgm["seconds"]
    else:
        gain = share = None
    yield "resnet18, worst case of two-step-l2l − pgm", "≥ 0", gain
    yield "resnet18, training time of two-step-l2l ÷ pgm", "≤ 0.45", share


class Steps:
    """The timed steps of one classifier."""

    def __init__(self, records: Sequence[Record], model: str) -> None:
        self.records = [one for one in of_steps(records) if one["model"] == model]

    def find(self, **wanted: Any) -> Record | None:
        """The record of a case; float32, eager and simultaneous unless told."""
        wanted = {"schedule": "simultaneous", "precision": "float32", "compiled": False} | wanted
        fitting = (one for one in self.records if wanted.items() <= one.items())
        return next(fitting, None)

    def ratio(self, case: Record, to: Record, key: str = "seconds") -> float | None:
        """One case's figure divided by another's."""
        above, below = self.find(**case), self.find(**to)
        return above[key] / below[key] if above and below else None


def ways(turns: Iterable[tuple[str, bool]]) -> str:
    """Precisions and whether networks are compiled, in words."""
    return " and ".join(f"{precision}{' compiled' * compiled}" for precision, compiled in turns)


def spread(record: Record, name: str) -> str:
    """A median with its range."""
    return f"{record[name]:.3f} ({record[f'{name}_min']:.3f} to {record[f'{name}_max']:.3f})"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
