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
        {**learned, "worst_case": 0.9, "clean": 0.9, "seconds": 9.0, "model": "wrn-34-10"},
        {**pgm, "worst_case": 0.9, "clean": 0.9, "seconds": 1.0, "warm_start": True},
    ]
    going_on = {**learned, "attacker": "two-layer", "warm_start": True, "clean": 0.8}
    runs.append({**going_on, "worst_case": 0.52, "seconds": 31.0})
    reached = {what: value for what, _, value in tables.reached([*wide, authors, rate, *runs])}
    measured = {what: round(value, 6) for what, value in reached.items() if value is not None}
    assert measured == {
        "grad-l2l ÷ pgm, wrn-34-10, bf16 compiled in a CUDA graph": 0.25,
        "two-step-l2l ÷ pgm, wrn-34-10, bf16 compiled in a CUDA graph": 0.4,
        "memory of two-step-l2l ÷ pgm, wrn-34-10, bf16 compiled": 1.5,
        "two-step-l2l, wrn-34-10: bf16 compiled in a CUDA graph ÷ float32 alternating": 0.1,
        "plain wrn-34-10, bf16 compiled in a CUDA graph, share of the matrix rate": 0.5,
        "worst case of two-step-l2l, wide, − pgm, resnet18": 0.02,
        "training time of two-step-l2l, wide, ÷ pgm, resnet18": 0.43,
        "worst case of two-step-l2l, two-layer, − pgm, resnet18": -0.03,
        "training time of two-step-l2l, two-layer, ÷ pgm, resnet18": 0.3,
        "worst case of two-step-l2l, two-layer, warm start, − pgm, resnet18": 0.02,
        "training time of two-step-l2l, two-layer, warm start, ÷ pgm, resnet18": 0.31,
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
    assert suite("tables").targets(records).count("not measured") == 19


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
    going_on = {**seeds[0], "warm_start": True, "seconds": 5.0}
    assert runs.trained([going_on, *seeds]).splitlines()[2].endswith("| 40.0 | 5.0 | 0.500 |")
    (_, other) = runs.over_seeds([*seeds, {**seeds[0], "graphs": True}])[1:]
    assert runs.time_to_pgm(other, runs.over_seeds(seeds)) is None


def test_runs_of_another_network_have_a_row_of_their_own(suite: Suite) -> None:
    runs = suite("runs")
    run = {"method": "pgm", "precision": "bf16", "compiled": False, "seconds": 10.0}
    run |= {"dataset": "digits", **dict.fromkeys(runs.ACCURACIES, 0.5)}
    others = [{**run, "model": "wrn-10-1"}, {**run, "model": "resnet18", "seconds": 40.0}]
    for row, seconds in zip(runs.trained(others).splitlines()[2:], ("10.0", "40.0"), strict=True):
        assert row.endswith(f"| 50.0 | {seconds} | 1.000 |")
    assert dict(suite("tables").sections(others)) == {
        f"Training: {one['model']}, digits": runs.trained([one]) for one in others
    }


def test_a_step_in_numbers(suite: Suite) -> None:
    tables = suite("tables")
    ratio = {"ratio_to_pgm": 0.25, "ratio_to_pgm_min": 0.2, "ratio_to_pgm_max": 0.3}
    step = {"method": "grad-l2l", "schedule": "simultaneous", "precision": "bf16", "graphs": False}
    step |= {"step_in_classifier_forwards": 5.3, "seconds": 0.02, "flops_per_second": 4e12}
    step |= {"compiled": True, "peak_mib": 123.4, "model": "wrn-10-1", "step": 7.0}
    both = {**step, "schedule": "alternating", "peak_mib": None}
    told = "| 5.30 | 20.0 | 0.250 (0.200–0.300) | 4"
    assert tables.cost([{**step, **ratio}, both]).splitlines()[2:] == [
        f"| grad-l2l | simultaneous | bf16 compiled | 5F + 3G {told} | 123 |",
        "| grad-l2l | alternating | bf16 compiled |  | 5.30 | 20.0 | – | 4 | – |",
    ]
    both["model"] = "resnet18"
    assert dict(tables.sections([step, both])) == {
        f"A step: {one['model']}": tables.cost([one]) for one in (step, both)
    }


def test_a_figure_is_divided_by_that_of_pgm_in_one_pass(suite: Suite) -> None:
    step = {"job": "steps", "model": "wrn-34-10", "schedule": "alternating", "method": "plain"}
    step |= {"precision": "float32", "compiled": False, "graphs": False, "flops_per_second": 1.0}
    pgm = {**step, "method": "pgm", "step": 4.0}
    records = [{**step, "step": 3.0}, pgm, {**pgm, "schedule": "simultaneous", "step": 2.0}]
    shares = suite("tables").Steps(records, "wrn-34-10").to_pgm("step", schedule="alternating")
    assert shares == {"plain": 1.5, "pgm": 2.0}
