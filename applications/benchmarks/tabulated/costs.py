"""Time and memory of a training step, and the targets for a GPU."""

from __future__ import annotations

from suite import tables
from suite.runs import Record, runs_of, trained, way_of
from suite.steps import METHODS, way

from bilevel.experiment.tables import cell, markdown
from tabulated.reading import read


def table_3() -> str:
    """The paper's Table 3 as ratios, counted and measured."""
    return tables.table_3(read("step_cost"), read("gpu_suite"))


def table_3_in_short() -> str:
    """The same without what was counted."""
    return tables.table_3(read("step_cost"), read("gpu_suite"), counted=False)


def cpu(results: str = "step_cost-small") -> str:
    """Times of a step on a CPU, relative to the same method in float32, eager and in one pass."""
    steps = tables.Steps(read(results), "wrn-16-2")
    ways = [
        (precision, compiled) for precision in ("float32", "bf16") for compiled in (False, True)
    ]
    rows = []
    for method in ("pgm", "two-step-l2l"):
        base = steps.find(method=method)
        for schedule in ("alternating", "simultaneous"):
            found = [
                steps.find(method=method, schedule=schedule, precision=precision, compiled=compiled)
                for precision, compiled in ways
            ]
            ratios = [one["seconds"] / base["seconds"] if one and base else None for one in found]
            rows.append([method, schedule, *(cell(ratio, ".2f") for ratio in ratios)])
    return markdown(["", "schedule", *(way(*one) for one in ways)], rows)


def memory() -> str:
    """Peak memory of a step in MiB."""
    steps = tables.Steps(read("step_cost-16"), "wrn-34-10")
    rows = []
    for method in ("pgm", "grad-l2l", "two-step-l2l"):
        row = [method]
        for precision in ("float32", "bf16"):
            one = steps.find(method=method, precision=precision)
            ratio = steps.to_pgm("peak_mib", precision=precision)[method]
            row += [f"{one['peak_mib']:.0f}" if one else "–", f"{ratio:.2f}"]
        rows.append(row)
    return markdown(["method", "float32", "÷ PGM-10", "bf16", "÷ PGM-10"], rows)


def gpu(model: str) -> str:
    """Milliseconds of a step on a GPU, the slowest way first, and the ratio to PGM-10's."""
    columns: dict[str, dict[str, Record]] = {}
    steps = tables.Steps(read("gpu_suite"), model).records
    for one in sorted(steps, key=lambda one: (one["method"] != "two-step-l2l", -one["seconds"])):
        both = "alternating, " if one["schedule"] == "alternating" else ""
        columns.setdefault(both + way_of(one), {})[one["method"]] = one
    rows = [
        [method, *(time_of(column.get(method)) for column in columns.values())]
        for method in METHODS
    ]
    return markdown(["method", *columns], rows)


def time_of(step: Record | None) -> str:
    """Milliseconds, and in brackets the ratio to PGM-10's where that was measured."""
    if step is None:
        return "–"
    ratio = f" ({step['ratio_to_pgm']:.2f})" if "ratio_to_pgm" in step else ""
    return f"{1e3 * step['seconds']:.1f}{ratio}"


def gpu_training() -> str:
    """Training runs on a GPU."""
    return trained(runs_of(read("gpu_suite")))


def targets() -> str:
    """The targets for a GPU and the figures that were measured."""
    return tables.targets(read("gpu_suite"))


def small_training() -> str:
    """The small version of the GPU's training runs."""
    return trained(runs_of(read("gpu_suite-small")))
