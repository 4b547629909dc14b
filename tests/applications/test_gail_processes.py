"""The processes of `applications/gail.py`: what they compute, and that none outlives the run."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bilevel.experiment import commandline

SMALL = ["--steps", 320, "--environments", 4, "--demonstrations", 2]


@pytest.fixture
def module(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("gail")


def test_runs_side_by_side_are_those_one_after_the_other(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    base = [*SMALL, "--method", "gail", "--seeds", 2, "--iterations", 2]
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        torch.set_num_threads(2)
        ended = call(module, *base, "--jobs", jobs, "--out", out)
        assert (ended.status, ended.err) == (0, "")
        assert json.loads((out / "results.json").read_text())["environment"]["threads"] == "1"
    one, two = ((tmp_path / jobs / "curves.csv").read_text() for jobs in "12")
    assert one == two
    assert len(one.splitlines()) == 1 + 2 * 2


def test_an_interrupt_ends_the_other_processes(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """As SIGTERM does, which this process alone gets: thousands of iterations are left."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr("gail.ProgressBar.show", interrupt)
    base = [*SMALL, "--method", "gail", "--seeds", 2, "--iterations", 5000, "--jobs", 2]
    assert call(module, *base, "--out", tmp_path).status == 130
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_is_told_in_one_line(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """As by a system that has no memory left."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def kill(*_: object) -> None:
        for process in multiprocessing.active_children():
            if "Manager" not in process.name:
                process.kill()

    monkeypatch.setattr("gail.ProgressBar.show", kill)
    base = [*SMALL, "--method", "gail", "--seeds", 2, "--iterations", 30, "--jobs", 2]
    ended = call(module, *base, "--out", tmp_path)
    assert ended.status == 2
    assert "a process of the runs was killed" in ended.err


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads the table of processes")
def test_a_kill_ends_the_other_processes(tmp_path: Path) -> None:
    """Even one that this process cannot notice: the workers and the manager see that it is gone."""
    command = [sys.executable, Path(__file__).parents[2] / "applications" / "gail.py", *SMALL]
    command += ["--method", "gail", "--seeds", 2, "--iterations", 100_000, "--jobs", 2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OF_TEST": str(tmp_path)}
    with subprocess.Popen([*map(str, command), "--out", str(tmp_path)], env=environment) as process:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*/*/tensorboard"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(_with_variable("OF_TEST", str(tmp_path))) >= 4
        process.kill()
    while _with_variable("OF_TEST", str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _with_variable("OF_TEST", str(tmp_path))


def _with_variable(name: str, value: str) -> list[str]:
    """The processes that were started with a variable in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(place.name)
    return found


def test_one_run_needs_no_other_process(
    module: ModuleType, call: Callable[..., Any], applications: Any, tmp_path: Path,
    monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.delattr(applications("gail_lib.runs"), "ProcessPoolExecutor")
    cloned = [*SMALL, "--method", "bc", "--every", 20, "--jobs", 2, "--out", tmp_path]
    assert call(module, *cloned).status == 0


def test_the_curves_of_a_full_disk_are_no_traceback_of_a_worker(
    applications: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = SimpleNamespace(join=threading.Event().wait)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    applications("gail_lib.runs")._begin_worker()
    assert threading.excepthook is commandline.thread_failed
