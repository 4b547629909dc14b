"""`applications/benchmarks/gpu_suite.py`: stages, the whole, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilevel import BilevelError
from tests.applications.conftest import BENCHMARKS, Ended, Suite

CPU = torch.device("cpu")


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
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, ledger = suite("training"), suite("ledger")
    monkeypatch.setattr("bilevel.robustness.training.trainer.WINDOW", 1)
    sources, data = suite("gpu_suite"), write_images(tmp_path / "images.npz")
    args = sources.Args(data=data)
    images = sources.load(args, suite("plan").SMOKE, CPU)
    recipe = sources.fast(sources.RECIPES["digits"])
    recipe = sources.replace(recipe, epochs=2, batch_size=10)
    settings: dict[str, Any] = {"precision": "bf16", "fast": False, "seed": 0}
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


def test_a_ledger_goes_on_where_the_last_stage_ended(suite: Suite, tmp_path: Path) -> None:
    ledger = suite("ledger")
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
    part = ledger.Job("f", lambda: [{"figure": 6}, {"failed": "a case"}], 0.0)
    ledger.work([part], made(), ledger.Clock(1))
    assert made().tried(part)
    assert not made().done(part)
    repeated = job("f", ValueError("no memory"))
    ledger.work([repeated], made(), ledger.Clock(1))
    assert [one.get("figure") for one in made().of(part)] == [6, None]  # what was measured is kept
    with pytest.raises(BilevelError, match=r"seed = 0, this one has seed = 1: .*another --out"):
        ledger.Ledger(tmp_path, {"seed": 1}, {"device": "cpu"})
    with pytest.raises(BilevelError, match=r"device = cpu, .*device = cuda: .*another --out"):
        ledger.Ledger(tmp_path, {"seed": 0}, {"device": "cuda"})


def test_a_clock(suite: Suite, tmp_path: Path) -> None:
    ledger = suite("ledger")
    ledger.Clock(1).check(0.9)
    with pytest.raises(ledger.StageOver):
        ledger.Clock(1).check(1.1)
    begun: list[str] = []

    def job(name: str, minutes: float) -> Any:
        return ledger.Job(name, lambda: [begun.append(name) or {}], minutes)

    made = ledger.Ledger(tmp_path, {}, {})
    ledger.work([job("long", 2), job("short", 0.1)], made, ledger.Clock(1))
    assert begun == ["short"]  # what does not fit does not keep out what does


# The whole.


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
        "steps of wrn-10-1, float32",
        "training small-cnn, pgm",
        "training small-cnn, two-step-l2l, two-layer",
    }
    report = (out / "tables.md").read_text()
    assert report in ended.stdout
    for title in ("## A step: wrn-10-1", "## Training: small-cnn, npz", "## Targets"):
        assert title in report
    assert "| two-step-l2l | alternating | float32 |" in report
    again = run(env=one_thread)
    assert again.returncode == 0
    assert "of 6: " not in again.stdout  # all is there
    assert again.stdout.endswith("nothing is left to be done\n")


def test_a_gpu_asks_for_images(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    script = suite("gpu_suite")
    with pytest.raises(script.BilevelError, match=r"no images .*--data FILE\.npz"):
        script.fitting_scale(script.Args(), torch.device("cuda"))
    args = script.Args(data=Path("x.npz"))
    plan = suite("plan")
    assert script.fitting_scale(args, torch.device("cuda")) is plan.FULL
    jobs = script.planned(args, plan.FULL, None, torch.device("cuda"), None)
    assert len({job.name for job in jobs}) == len(jobs) == 1 + len(plan.FULL.parts)
    names = {job.name for job in jobs}
    assert "steps of wrn-34-10, bf16 compiled in a CUDA graph and bf16 compiled" in names
    assert "training resnet18, two-step-l2l, two-layer, seed 1" in names
    assert max(job.minutes for job in jobs) < script.Args().minutes
    over = suite("ledger").Clock(-1)
    monkeypatch.setattr(script, "measure", lambda *given: given[-1]("a case"))
    with pytest.raises(suite("ledger").StageOver):
        script.time_steps(plan.FULL.parts[0], CPU, over)
    script.time_steps(plan.SMALL.parts[-1], CPU, over)  # a processor's parts are not cut short
    args.smoke = True
    assert script.fitting_scale(args, torch.device("cuda")) is plan.SMOKE_GPU


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "nowhere.npz"], "there is no file nowhere.npz"),
        (["--epochs", "0"], "epochs is 0: it must be a whole number of at least 1"),
        (["--test-size", "0"], "a sample of 0 images is empty"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(
    suite: Suite, call: Callable[..., Ended], tmp_path: Path, arguments: list[str], told: str
) -> None:
    ended = call(suite("gpu_suite"), "--smoke", "--out", tmp_path, *arguments)
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
    suite: Suite, monkeypatch: pytest.MonkeyPatch, line: str, expected: dict[str, Any]
) -> None:
    script = suite("gpu_suite")
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *line.split()])
    assert script.read_arguments(script.Args) == script.Args(**expected)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--minutes many", "argument --minutes: invalid float value: 'many'"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
    ],
)
def test_a_bad_argument_is_one_line(
    suite: Suite, call: Callable[..., Ended], line: str, told: str
) -> None:
    ended = call(suite("gpu_suite"), *line.split())
    assert (ended.status, ended.err) == (2, f"gpu_suite.py: error: {told}\n")


def test_help(suite: Suite, call: Callable[..., Ended]) -> None:
    ended = call(suite("gpu_suite"), "--help")
    assert ended.status == 0
    assert "length of a call (default: 8.5)" in ended.out


@pytest.mark.parametrize(("wanted", "kept"), [(500, 448), (None, 1280), (5000, 1280)])
def test_a_compiled_epoch_has_whole_batches(suite: Suite, wanted: int | None, kept: int) -> None:
    """Of the training images of digits, in batches of 64."""
    scale = suite("gpu_suite").replace(suite("plan").SMOKE_GPU, images=(wanted, 8, 8))
    train, validation, test = suite("gpu_suite").load(suite("gpu_suite").Args(), scale, CPU)
    assert [len(part) for part in (train, validation, test)] == [kept, 8, 8]


def test_a_folder_that_another_run_writes_to(suite: Suite, tmp_path: Path) -> None:
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
    code += "print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    script, pipes = suite("gpu_suite"), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(script.BilevelError, match="another run writes to"):
            script.main(script.Args(out=tmp_path, smoke=True))
        other.kill()
