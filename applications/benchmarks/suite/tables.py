"""What was measured, as Markdown: costs beside the paper's, accuracies beside time, targets."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # where the paper's tables are

from reproduce_lib.paper import TABLE_2, TABLE_3

from bilevel.experiment.tables import cell, markdown
from suite.runs import Record, Target, reached_by_runs, runs_of, trained, way_of
from suite.steps import METHODS, way

PAPER = {name: seconds / TABLE_3["cifar10"]["pgm"] for name, seconds in TABLE_3["cifar10"].items()}
"""Table 3 as ratios: an epoch of WRN-34-10 on CIFAR-10, divided by PGM-10's."""

PAPER_PGM20 = {
    one.row: one.robust for one in TABLE_2["cifar10"] if one.attack == "PGM-20" and one.row in PAPER
}
"""Accuracies under PGM-20 of the same classifiers, in per cent."""

FAST: dict[str, object] = {"precision": "bf16", "compiled": True, "graphs": True}
"""How a GPU computes by default."""

UNKNOWN = "not measured"


def report(records: Sequence[Record], environment: Mapping[str, str]) -> str:
    """All tables that there are figures for."""
    about = ", ".join(environment[key] for key in ("date", "device", "torch"))
    parts = [f"`{environment['command']}`: {about}"]
    for title, text in [*sections(records), ("Targets", targets(records))]:
        parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def sections(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Title and table of each classifier's steps and training runs."""
    steps = steps_of(records)
    for model in dict.fromkeys(one["model"] for one in steps):
        yield f"A step: {model}", cost([one for one in steps if one["model"] == model])
    for model in dict.fromkeys(one["model"] for one in runs_of(records)):
        chosen = [one for one in runs_of(records) if one["model"] == model]
        yield f"Training: {model}, {chosen[0]['dataset']}", trained(chosen)


def steps_of(records: Iterable[Record]) -> list[Record]:
    """The records of timed steps."""
    return [one for one in records if "flops_per_second" in one and "method" in one]


def cost(steps: Sequence[Record]) -> str:
    """Seconds, ratio to PGM-10, arithmetic and memory of a step."""
    rows = []
    for one in steps:
        single = one["schedule"] == "simultaneous"
        rows.append(
            [
                one["method"],
                one["schedule"],
                way_of(one),
                METHODS[one["method"]] if single else "",
                f"{one['step_in_classifier_forwards']:.2f}",
                f"{1e3 * one['seconds']:.1f}",
                spread(one, "ratio_to_pgm") if "ratio_to_pgm" in one else "–",
                f"{one['flops_per_second'] / 1e12:.3g}",
                cell(one["peak_mib"], ".0f"),
            ]
        )
    titles = "method", "schedule", "precision", "should cost", "counted, F", "ms", "÷ PGM-10"
    return markdown([*titles, "TFLOP/s", "peak, MiB"], rows)


def table_3(cpu: Sequence[Record], gpu: Sequence[Record], *, counted: bool = True) -> str:
    """The paper's Table 3 as ratios to PGM-10, what was counted, and what was measured."""
    ours = Steps(cpu, "wrn-34-10")
    columns = {
        "paper": PAPER,
        "alternating, counted": ours.to_pgm("step", schedule="alternating"),
        "alternating, CPU": ours.times(schedule="alternating"),
        "one pass, counted": ours.to_pgm("step"),
        "one pass, CPU": ours.times(),
        "one pass, CPU, bf16": ours.times(precision="bf16"),
        "one pass, GPU": Steps(gpu, "wrn-34-10").times(**FAST),
    }
    if not counted:
        columns = {title: column for title, column in columns.items() if "counted" not in title}
    rows = [
        [
            name,
            *(f"{column[name]:.2f}" if name in column else UNKNOWN for column in columns.values()),
        ]
        for name in PAPER
    ]
    return markdown(["method", *columns], rows)


def targets(records: Sequence[Record]) -> str:
    """A table of the targets for a GPU and the figures that were measured."""
    rows = [
        [what, aim, UNKNOWN if value is None else f"{value:.3f}"]
        for what, aim, value in reached(records)
    ]
    return markdown(["figure", "target", "measured"], rows)


def reached(records: Sequence[Record]) -> Iterator[Target]:
    """Each figure, its target, and its value where it was measured."""
    yield from reached_by_steps(records)
    yield from reached_by_runs(records)


def reached_by_steps(records: Sequence[Record]) -> Iterator[Target]:
    """The targets of the cost of a step of WRN-34-10."""
    steps = Steps(records, "wrn-34-10")
    for precision in ("float32", "tf32", "bf16"):
        fast = precision == "bf16"
        kind = {"precision": precision, "compiled": fast, "graphs": fast}
        for method, aim in (("grad-l2l", "≤ 0.27"), ("two-step-l2l", "≤ 0.40")):
            title = f"{method} ÷ pgm, wrn-34-10, {way(*kind.values())}"
            yield title, aim, steps.times(**kind).get(method)
        kind["graphs"] = False  # in which memory is not seen
        title = f"memory of two-step-l2l ÷ pgm, wrn-34-10, {way(*kind.values())}"
        yield title, "≤ 1.6", steps.to_pgm("peak_mib", **kind).get("two-step-l2l")
    ours = steps.find(method="two-step-l2l", **FAST)
    authors = steps.find(method="two-step-l2l", schedule="alternating")
    title = f"two-step-l2l, wrn-34-10: {way(**FAST)} ÷ float32 alternating"
    yield title, "≤ 0.15", ours["seconds"] / authors["seconds"] if ours and authors else None
    rates = (one for one in records if one["job"] == "matrix rates" and "precision" in one)
    rate = next((one for one in rates if one["precision"] == "bf16"), None)
    plain = steps.find(method="plain", **FAST)
    share = plain["flops_per_second"] / rate["flops_per_second"] if plain and rate else None
    yield f"plain wrn-34-10, {way(**FAST)}, share of the matrix rate", "≥ 0.45", share


class Steps:
    """The timed steps of one classifier; float32, eager and simultaneous unless told."""

    def __init__(self, records: Sequence[Record], model: str) -> None:
        self.records = [one for one in steps_of(records) if one["model"] == model]

    def find(self, **wanted: object) -> Record | None:
        """The record of a case."""
        usual = {"schedule": "simultaneous", "precision": "float32"}
        wanted = usual | {"compiled": False, "graphs": False} | wanted
        return next((one for one in self.records if wanted.items() <= one.items()), None)

    def times(self, **wanted: object) -> dict[str, float]:
        """Each method's time divided by that of PGM-10 in one pass, as measured in turns."""
        found = {method: self.find(method=method, **wanted) for method in METHODS}
        # Where PGM-10 itself failed, there is nothing to divide by.
        return {
            name: one["ratio_to_pgm"]
            for name, one in found.items()
            if one and "ratio_to_pgm" in one
        }

    def to_pgm(self, key: str, **wanted: object) -> dict[str, float]:
        """Each method's figure divided by that of PGM-10 in one pass."""
        pgm = self.find(method="pgm", **{**wanted, "schedule": "simultaneous"})
        found = {method: self.find(method=method, **wanted) for method in METHODS}
        return {name: one[key] / pgm[key] for name, one in found.items() if one and pgm}


def spread(record: Record, name: str) -> str:
    """A median with its range."""
    return f"{record[name]:.3f} ({record[f'{name}_min']:.3f}–{record[f'{name}_max']:.3f})"
