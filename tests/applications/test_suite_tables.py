"""The suite's tables: targets, the paper's ratios, runs over seeds."""

from __future__ import annotations

from tests.applications.conftest import Suite


def test_targets_are_told_from_the_records(suite: Suite) -> None:
    tables = suite("tables")
    step = {"job": "steps", "model": "wrn-34-10", "schedule": "simultaneous", "peak_mib": 100.0}
    step["graphs"] = False
    times = {"pgm": 1.0, "grad-l2l": 0.25, "two-step-l2l": 0.4, "plain": 0.1}
    memory = {"pgm": 100.0, "two-step-l2l": 150.0}
    fast = {"precision": "bf16", "compiled": True, "flops_per_second": 4e14}
    wide = [
        {**step, **fast, "method": method, "seconds": seconds, "ratio_to_pgm": seconds}
        | {"graphs": True, "peak_mib": None}
        for method, seconds in times.items()
    ] + [
        {**step, **fast, "method": method, "seconds": 9.0, "ratio_to_pgm": 9.0, "peak_mib": mib}
        for method, mib in memory.items()
    ]
    authors = {**step, "method": "two-step-l2l", "schedule": "alternating", "seconds": 4.0}
    authors |= {"precision": "float32", "compiled": False, "flops_per_second": 1e13}
    authors["ratio_to_pgm"] = 4.0
    rate = {"job": "matrix rates", "precision": "bf16", "flops_per_second": 8e14}
    run = {"job": "training", "model": "resnet18", "seed": 0, **fast, "graphs": True}
    del run["flops_per_second"]
    pgm = {**run, "method": "pgm", "attacker": None}
    learned = {**run, "method": "two-step-l2l", "attacker": "wide"}
    runs = [
        {**pgm, "worst_case": 0.5, "clean": 0.8, "seconds": 100.0},
        {**pgm, "worst_case": 0.4, "clean": 0.8, "seconds": 200.0, "seed": 1},
        {**pgm, "worst_case": 0.9, "clean": 0.8, "seconds": 1.0, "seed": 2},
        {**learned, "worst_case": 0.51, "clean": 0.82, "seconds": 42.0},
        {**learned, "worst_case": 0.43, "clean": 0.82, "seconds": 88.0, "seed": 1},
        {**learned, "worst_case": 0.515, "clean": 0.818, "seconds": 99.0, "precision": "float32"},
        {**learned, "worst_case": 0.9, "clean": 0.9, "seconds": 9.0, "compiled": False},
        {**learned, "worst_case": 0.47, "clean": 0.9, "seconds": 30.0, "attacker": "two-layer"},
    ]
    reached = {what: value for what, _, value in tables.reached([*wide, authors, rate, *runs])}
    measured = {what: round(value, 6) for what, value in reached.items() if value is not None}
    assert measured == {
        "grad-l2l ÷ pgm, wrn-34-10, bf16 compiled in a CUDA graph": 0.25,
        "two-step-l2l ÷ pgm, wrn-34-10, bf16 compiled in a CUDA graph": 0.4,
        "memory of two-step-l2l ÷ pgm, wrn-34-10, bf16 compiled": 1.5,
        "two-step-l2l, wrn-34-10: bf16 compiled in a CUDA graph ÷ float32 alternating": 0.1,
        "plain wrn-34-10, bf16 compiled in a CUDA graph, share of the matrix rate": 0.5,
        "worst case of two-step-l2l, wide attacker, − pgm, resnet18": 0.02,
        "training time of the same ÷ pgm, wide attacker": 0.43,
        "worst case of two-step-l2l, two-layer attacker, − pgm, resnet18": -0.03,
        "training time of the same ÷ pgm, two-layer attacker": 0.3,
        "clean accuracy of two-step-l2l, resnet18: bf16 − float32": 0.002,
        "worst case of two-step-l2l, resnet18: bf16 − float32": 0.005,
    }
    assert tables.targets([]).count("not measured") == len(reached)
    found = tables.table_3([{**authors, "step": 8.0}], wide).splitlines()
    assert found[-1] == (
        "| two-step-l2l | 0.61 | not measured | 4.00 " + "| not measured " * 3 + "| 0.40 |"
    )


def test_the_papers_table_as_ratios(suite: Suite) -> None:
    paper = suite("tables").PAPER
    assert {name: round(value, 2) for name, value in paper.items()} == {
        "plain": 0.08,
        "pgm": 1.0,
        "naive-l2l": 0.22,
        "grad-l2l": 0.47,
        "two-step-l2l": 0.61,
    }


def test_without_pgm_there_is_nothing_to_divide_by(suite: Suite) -> None:
    step = {"job": "steps", "model": "wrn-34-10", "schedule": "simultaneous", "method": "plain"}
    step |= {"precision": "float32", "compiled": False, "graphs": False, "seconds": 1.0}
    records = [{**step, "flops_per_second": 1e12, "peak_mib": 1.0}]
    assert suite("tables").targets(records).count("not measured") == 17


def test_runs_of_several_seeds_share_a_row(suite: Suite) -> None:
    runs = suite("runs")
    run = {"model": "wrn-10-1", "precision": "bf16", "compiled": False, "seconds": 10.0}
    run |= dict.fromkeys(("clean", "pgm20", "pgm100", "left_after_apgdce"), 0.8)
    seeds = [
        {**run, "method": "pgm", "worst_case": 0.4},
        {**run, "method": "pgm", "worst_case": 0.5},
        {**run, "method": "two-step-l2l", "attacker": "wide", "worst_case": 0.45, "seconds": 4.0},
    ]
    pgm, learned = runs.trained(seeds).splitlines()[2:]
    assert pgm.startswith("| pgm | bf16 | 2 | 80.0 (80.0–80.0) |")
    assert pgm.endswith("| 45.0 (40.0–50.0) | 10.0 | 1.000 |")
    assert learned.startswith("| two-step-l2l, wide | bf16 | 1 | 80.0 |")
    assert learned.endswith("| 45.0 | 4.0 | 0.400 |")
    (_, other) = runs.over_seeds([*seeds, {**seeds[0], "graphs": True}])[1:]
    assert runs.time_to_pgm(other, runs.over_seeds(seeds)) is None
