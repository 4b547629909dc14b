"""`applications/benchmarks/gpu_suite.py`: steps counted and timed, stages, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bilevel import BilevelError
from tests.applications.conftest import APPLICATIONS, Ended

BENCHMARKS = APPLICATIONS / "benchmarks"
CPU = torch.device("cpu")
Part = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def part(applications: Part) -> Iterator[Part]:
    """A module of the suite by name."""
    sys.path.insert(0, str(BENCHMARKS))
    scripts = "gpu_suite", "step_cost"
    yield lambda name: applications(name if name in scripts else f"suite.{name}")
    sys.path.remove(str(BENCHMARKS))


def write_images(path: Path) -> Path:
    """Small images of two classes, bright and dark."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 60), ("test", 20)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 100, (count, 8, 8, 3))
        arrays[f"{name}_labels"] = labels
        arrays[f"{name}_images"] = (noise + 150 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(path, **arrays)
    return path


# Steps.


@pytest.mark.parametrize(
    ("method", "simultaneous", "alternating"),
    [
        ("plain", (3, 0), (3, 0)),
        ("fgsm", (5, 0), (5, 0)),
        ("pgm", (23, 0), (23, 0)),
        ("naive-l2l", (3, 3), (5, 4)),
        ("grad-l2l", (5, 3), (9, 4)),
        ("two-step-l2l", (7, 6), (13, 8)),
    ],
)
def test_steps_cost_what_is_counted_by_hand(
    part: Part, method: str, simultaneous: tuple[int, int], alternating: tuple[int, int]
) -> None:
    """In passes of a wide network, whose first convolution is nothing, and of the attacker."""
    steps = part("steps")
    size = steps.Size("wrn-16-10", 32, 1)
    for schedule, (f, g) in (("simultaneous", simultaneous), ("alternating", alternating)):
        counted = steps.count(size, method, schedule)
        share = counted["attacker_forward"] / counted["classifier_forward"]
        expected = f + g * share
        assert counted["step_in_classifier_forwards"] == pytest.approx(expected, rel=2e-3)


def test_a_measurement(part: Part) -> None:
    steps, timing = part("steps"), part("timing")
    cases = [
        steps.Case(method, "simultaneous", precision)
        for precision in ("float32", "bf16")
        for method in ("pgm", "grad-l2l")
    ]
    told: list[str] = []
    size = steps.Size("wrn-10-1", 4, 4, image_size=16)
    records = timing.measure(size, cases, CPU, 3, told.append)
    assert told[-1] == "grad-l2l, simultaneous, bf16"
    for record, case in zip(records, cases, strict=True):
        assert (record["method"], record["precision"]) == (case.method, case.precision)
        arithmetic = 2 * 4 * record["step"] / record["seconds"]
        assert record["flops_per_second"] == pytest.approx(arithmetic)
    pgm, grad, *_ = records
    assert pgm["ratio_to_pgm"] == pgm["ratio_to_pgm_max"] == 1
    assert grad["ratio_to_pgm_min"] <= grad["ratio_to_pgm"] < 1
    assert grad["peak_mib"] > pgm["peak_mib"] > records[2]["peak_mib"]  # bf16 takes less


def test_a_case_that_fails_does_not_cost_the_others_their_figures(part: Part) -> None:
    steps = part("steps")
    cases = [steps.Case("plain", graphs=True), steps.Case("plain")]  # of CUDA there is none
    told: list[str] = []
    good, bad = part("timing").measure(steps.Size("wrn-10-1", 4, 4), cases, CPU, 1, told.append)
    assert good["seconds"] > 0
    assert bad["graphs"]
    assert told[1] == f"  failed: {bad['reason']}"


def test_what_was_not_compiled_is_not_taken_for_it(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph of an attacker fails, after which the other cases were set up already."""
    steps, timing = part("steps"), part("timing")
    compiled: list[object] = []

    def compiler(graph: Any, _: object) -> Any:
        compiled.append(graph)
        if len(compiled) > 2:
            raise RuntimeError("no more")
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    cases = [steps.Case(method, compiled=True) for method in ("plain", "grad-l2l")]
    size = steps.Size("wrn-10-1", 4, 4, image_size=16)
    with pytest.warns(UserWarning, match="not compiled"):
        records = timing.measure(size, cases, CPU, 1, lambda _: None)
    failed = {one["method"] for one in records if "could not be compiled" in one.get("reason", "")}
    assert "grad-l2l" in failed
    assert {one["method"] for one in records} == {"plain", "grad-l2l"}


def test_a_timed_game_stays_where_it_is(part: Part) -> None:
    """Steps of size zero: figures of a thousandth step are those of the first."""
    steps = part("steps")
    bench = steps.Bench(steps.Size("wrn-10-1", 4, 4, image_size=16), CPU)
    game = bench.game(steps.Case("two-step-l2l"))
    before = [p.clone() for player in (game.leader, game.solver) for p in player.parameters()]
    steps.take(game, bench.batch, "float32")
    after = [p for player in (game.leader, game.solver) for p in player.parameters()]
    assert all(map(torch.equal, before, after))
    assert bench.game(steps.Case("pgm")).leader.model is game.leader.model


def test_the_rate_of_matrix_products(part: Part) -> None:
    assert 1e9 < part("timing").matrix_rate("float32", CPU) < 1e14


# Stages.


class Counted:
    """A clock that ends the stage at a look."""

    def __init__(self, looks: int, over: type[Exception]) -> None:
        self.looks, self.over = looks, over

    def check(self, minutes: float = 0.0) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise self.over


def test_stages_give_what_one_stage_gives(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, ledger = part("training"), part("ledger")
    monkeypatch.setattr("bilevel.robustness.training.trainer.WINDOW", 1)
    sources, data = part("gpu_suite"), write_images(tmp_path / "images.npz")
    args = sources.Args(data=data)
    images = sources.load(args, part("plan").SMOKE, CPU)
    recipe = sources.fast(sources.RECIPES["digits"])
    recipe = sources.replace(recipe, epochs=2, batch_size=10)
    settings: dict[str, Any] = {"precision": "bf16", "compiled": False, "seed": 0}
    found = []
    for looks in (1000, 3):
        folder = tmp_path / str(looks)
        run = training.Training("two-step-l2l", recipe, "npz", folder=folder, **settings)
        stages = 1
        while True:
            try:
                (record,) = run.run(images, Counted(looks, ledger.StageOver))
                break
            except ledger.StageOver:
                stages += 1
        del record["seconds"], record["seconds_with_compilation"]
        found.append(record)
    assert stages > 3
    assert found[0] == found[1]
    assert 0 <= record["worst_case"] <= record["left_after_apgdce"] <= record["pgm100"] <= 1
    assert record["pgm20"] <= record["clean"]


def test_a_ledger_goes_on_where_the_last_stage_ended(part: Part, tmp_path: Path) -> None:
    ledger = part("ledger")
    tries: list[str] = []

    def job(name: str, *outcomes: object) -> Any:
        left = list(outcomes)

        def run() -> list[dict[str, object]]:
            tries.append(name)
            outcome = left.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return [{"figure": outcome}]

        return ledger.Job(name, run, 0.0)

    class Killed(BaseException):
        pass

    jobs = [
        job("a", 1),
        job("b", ValueError("no\nmemory"), 2),
        job("c", ledger.StageOver(), 3),
        job("d", Killed(), 4),
        job("e", 5),
    ]
    made = lambda: ledger.Ledger(tmp_path, {"seed": 0}, {"device": "cpu"})  # noqa: E731
    with pytest.raises(Killed):
        ledger.work(jobs, made(), ledger.Clock(1))
    noted = json.loads((tmp_path / "results.json").read_text())["results"]
    assert noted == [
        {"job": "a", "figure": 1},
        {"job": "b", "failed": "ValueError: no memory"},
        {"job": "d", "failed": "the stage ended in the middle of it"},
    ]
    ledger.work(jobs, made(), ledger.Clock(1))
    assert sorted(record.get("figure") for record in made().records) == [1, 2, 3, 4, 5]
    assert tries == list("abcdcebd")  # what has failed comes last
    assert all(map(made().done, jobs))
    with pytest.raises(BilevelError, match=r"seed = 0, this one has seed = 1: .*another --out"):
        ledger.Ledger(tmp_path, {"seed": 1}, {"device": "cpu"})
    with pytest.raises(BilevelError, match=r"device = cpu, .*device = cuda: .*another --out"):
        ledger.Ledger(tmp_path, {"seed": 0}, {"device": "cuda"})


def test_a_clock(part: Part, tmp_path: Path) -> None:
    ledger = part("ledger")
    ledger.Clock(1).check(0.9)
    with pytest.raises(ledger.StageOver):
        ledger.Clock(1).check(1.1)
    begun: list[str] = []

    def job(name: str, minutes: float) -> Any:
        return ledger.Job(name, lambda: [begun.append(name) or {}], minutes)

    made = ledger.Ledger(tmp_path, {}, {})
    ledger.work([job("long", 2), job("short", 0.1)], made, ledger.Clock(1))
    assert begun == ["short"]  # what does not fit does not keep out what does


# The whole, and its tables.


def test_it_needs_torch_torchvision_and_numpy_alone(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images.npz")
    out = tmp_path / "out"
    code = (
        "import runpy, sys\n"
        "for name in ('rich', 'tyro', 'matplotlib', 'tensorboard', 'sklearn', 'safetensors',"
        " 'gymnasium', 'higher', 'PIL', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        f"sys.argv = ['gpu_suite.py', '--smoke', '--data', {str(data)!r}, '--out', {str(out)!r}]\n"
        f"runpy.run_path({str(BENCHMARKS / 'gpu_suite.py')!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = partial(subprocess.run, command, capture_output=True, text=True, check=False)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = run(env=one_thread)
    assert ended.returncode == 0, ended.stderr
    content = json.loads((out / "results.json").read_text())
    assert not any("failed" in record for record in content["results"])
    assert {record["job"] for record in content["results"]} >= {
        "matrix rates",
        "steps of wrn-10-1, bf16",
        "training small-cnn, two-step-l2l",
    }
    report = (out / "tables.md").read_text()
    assert report in ended.stdout
    for title in ("## A step: wrn-10-1", "## Training: small-cnn, npz", "## Targets"):
        assert title in report
    assert "| two-step-l2l | alternating | bf16 |" in report
    again = run(env=one_thread)
    assert again.returncode == 0
    assert "of 6: " not in again.stdout  # all is there
    assert again.stdout.endswith("nothing is left to be done\n")


def test_targets_are_told_from_the_records(part: Part) -> None:
    tables = part("tables")
    step = {"job": "steps", "model": "wrn-34-10", "schedule": "simultaneous", "peak_mib": 100.0}
    step["graphs"] = False
    wide = [
        {**step, "method": method, "precision": "bf16", "compiled": True, "seconds": seconds}
        | {"flops_per_second": 4e14, "peak_mib": memory, "ratio_to_pgm": seconds}
        for method, seconds, memory in (
            ("pgm", 1.0, 100.0),
            ("grad-l2l", 0.25, 110.0),
            ("two-step-l2l", 0.4, 150.0),
            ("plain", 0.1, 100.0),
        )
    ]
    authors = {**step, "method": "two-step-l2l", "schedule": "alternating", "seconds": 4.0}
    authors |= {"precision": "float32", "compiled": False, "flops_per_second": 1e13}
    authors["ratio_to_pgm"] = 4.0
    rate = {"job": "matrix rates", "precision": "bf16", "flops_per_second": 8e14}
    run = {"job": "training", "model": "resnet18", "precision": "bf16"}
    runs = [
        {**run, "method": "pgm", "worst_case": 0.5, "clean": 0.8, "seconds": 100.0},
        {**run, "method": "two-step-l2l", "worst_case": 0.51, "clean": 0.82, "seconds": 42.0},
        {**run, "method": "two-step-l2l", "worst_case": 0.513, "clean": 0.818, "seconds": 99.0}
        | {"precision": "float32"},
    ]
    reached = {what: value for what, _, value in tables.reached([*wide, authors, rate, *runs])}
    measured = {what: round(value, 6) for what, value in reached.items() if value is not None}
    assert measured == {
        "grad-l2l ÷ pgm, wrn-34-10, bf16 compiled": 0.25,
        "two-step-l2l ÷ pgm, wrn-34-10, bf16 compiled": 0.4,
        "memory of two-step-l2l ÷ pgm, wrn-34-10, bf16 compiled": 1.5,
        "two-step-l2l, wrn-34-10: bf16 compiled ÷ float32 alternating": 0.1,
        "plain wrn-34-10, bf16 compiled, share of the matrix rate": 0.5,
        "worst case of two-step-l2l − pgm, resnet18": 0.01,
        "training time of two-step-l2l ÷ pgm, resnet18": 0.42,
        "clean accuracy of two-step-l2l, resnet18: bf16 − float32": 0.002,
        "worst case of two-step-l2l, resnet18: bf16 − float32": 0.003,
    }
    assert tables.targets([]).count("not measured") == len(reached)
    found = tables.table_3([{**authors, "step": 8.0}], wide).splitlines()
    assert found[-1] == (
        "| two-step-l2l | 0.61 | not measured | 4.00 " + "| not measured " * 3 + "| 0.40 |"
    )


def test_the_papers_table_as_ratios(part: Part) -> None:
    paper = part("tables").PAPER
    assert {name: round(value, 2) for name, value in paper.items()} == {
        "plain": 0.08,
        "pgm": 1.0,
        "naive-l2l": 0.22,
        "grad-l2l": 0.47,
        "two-step-l2l": 0.61,
    }


def test_a_gpu_asks_for_images(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    suite = part("gpu_suite")
    with pytest.raises(suite.BilevelError, match=r"no images .*--data FILE\.npz"):
        suite.fitting_scale(suite.Args(), torch.device("cuda"))
    args = suite.Args(data=Path("x.npz"))
    plan = part("plan")
    assert suite.fitting_scale(args, torch.device("cuda")) is plan.FULL
    jobs = suite.planned(args, plan.FULL, None, torch.device("cuda"), None)
    assert len({job.name for job in jobs}) == len(jobs) == 1 + len(plan.FULL.parts)
    assert jobs[1].name == "steps of wrn-34-10, bf16 compiled"
    assert max(job.minutes for job in jobs) < suite.Args().minutes
    args.smoke = True
    assert suite.fitting_scale(args, torch.device("cuda")) is plan.SMOKE_GPU


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "nowhere.npz"], "there is no file nowhere.npz"),
        (["--epochs", "0"], "epochs is 0: nothing would be trained"),
        (["--test-size", "0"], "a sample of 0 images is empty"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(
    part: Part, call: Callable[..., Ended], tmp_path: Path, arguments: list[str], told: str
) -> None:
    ended = call(part("gpu_suite"), "--smoke", "--out", tmp_path, *arguments)
    assert ended.status == 2
    assert ended.err.startswith(f"error: {told}")
    assert ended.out == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("--data x.npz --minutes 2 --epochs 3", {"data": Path("x.npz"), "minutes": 2, "epochs": 3}),
        ("--test-size 5 --out y --seed 1", {"test_size": 5, "out": Path("y"), "seed": 1}),
        ("--device cpu --smoke", {"device": "cpu", "smoke": True}),
    ],
)
def test_its_command_line(
    part: Part, monkeypatch: pytest.MonkeyPatch, line: str, expected: dict[str, Any]
) -> None:
    suite = part("gpu_suite")
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *line.split()])
    assert suite.read_arguments(suite.Args) == suite.Args(**expected)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--minutes many", "argument --minutes: invalid float value: 'many'"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
    ],
)
def test_a_bad_argument_is_one_line(
    part: Part, call: Callable[..., Ended], line: str, told: str
) -> None:
    ended = call(part("gpu_suite"), *line.split())
    assert (ended.status, ended.err) == (2, f"gpu_suite.py: error: {told}\n")


def test_help(part: Part, call: Callable[..., Ended]) -> None:
    ended = call(part("gpu_suite"), "--help")
    assert ended.status == 0
    assert "length of a call (default: 8.5)" in ended.out


def test_without_pgm_there_is_nothing_to_divide_by(part: Part) -> None:
    step = {"job": "steps", "model": "wrn-34-10", "schedule": "simultaneous", "method": "plain"}
    step |= {"precision": "float32", "compiled": False, "graphs": False, "seconds": 1.0}
    records = [{**step, "flops_per_second": 1e12, "peak_mib": 1.0}]
    assert part("tables").targets(records).count("not measured") == 15


def test_step_cost(part: Part, call: Callable[..., Ended], tmp_path: Path) -> None:
    """`applications/benchmarks/step_cost.py` too is made of these parts."""
    module = part("step_cost")
    ended = call(module, "--smoke", "--method", "pgm", "two-step-l2l", "--out", tmp_path)
    assert ended.status == 0, ended.err
    *steps, overhead = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(steps) == 4
    assert overhead["ratio_min"] <= overhead["ratio"] <= overhead["ratio_max"]
    ended = call(module, "--method", "pgn")
    assert (ended.status, "method pgn is not timed: give plain" in ended.err) == (2, True)
