"""What counts as a failure to write, and who may write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bilevel import BilevelError, experiment
from bilevel.experiment.files import atomic_write, claim, remove


def test_what_goes_wrong_before_the_disk_is_not_told_as_a_full_one(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"^tensors share memory$"),
        atomic_write(tmp_path / "file"),
    ):
        raise RuntimeError("tensors share memory")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "told",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        "basic_ios::clear: iostream error",  # of a small file, which fails when it is closed
    ],
)
def test_torchs_writer_makes_a_runtime_error_of_a_full_disk(tmp_path: Path, told: str) -> None:
    with (
        pytest.raises(
            BilevelError,
            match=r"cannot write .*file \(only a part of it: is the disk full\?\): free some space",
        ),
        atomic_write(tmp_path / "file"),
    ):
        raise RuntimeError(told)


def test_two_processes_that_write_one_file_leave_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.npz"
    with atomic_write(path) as mine:
        mine.write_text("mine")
        monkeypatch.setattr("os.getpid", lambda: -1)
        with atomic_write(path) as other:
            other.write_text("of another process")
        assert path.read_text() == "of another process"
    assert path.read_text() == "mine"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_part_that_a_killed_run_has_left_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path)
    path = tmp_path / "pgm" / "checkpoint.pt"
    with monkeypatch.context() as earlier:
        earlier.setattr("os.getpid", lambda: -1)
        killed = atomic_write(path)
        killed.__enter__().write_text("a part")
    with atomic_write(path) as part:
        part.write_text("whole")
    assert [*path.parent.iterdir()] == [path]
    assert path.read_text() == "whole"


def test_a_file_that_cannot_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    remove(path, path)  # is none
    path.mkdir()
    with pytest.raises(BilevelError, match=r"cannot write .*run\.pt"):
        remove(path)


@pytest.mark.parametrize("text", ["", "[]", '{"environment": {"command": "python"}}'])
def test_a_folder_with_results_of_another_application(tmp_path: Path, text: str) -> None:
    environment = experiment.environment(torch.device("cpu"))
    path = experiment.write_results(tmp_path, {}, environment, [])
    claim(tmp_path)
    other = {**environment, "command": "python 'my applications/train.py' --out runs"}
    experiment.write_results(tmp_path, {}, other, [])
    with pytest.raises(BilevelError, match=r"holds the results of train\.py: .* another --out"):
        claim(tmp_path)
    path.write_text(text)  # of something else
    claim(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_folder_is_one_process_at_a_time(tmp_path: Path) -> None:
    code = "import sys, pathlib; from bilevel.experiment.files import claim; "
    code += (
        f"claim(pathlib.Path({str(tmp_path)!r})); print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as other:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(BilevelError, match=r"another run writes to .* give another --out"):
            claim(tmp_path)
        other.kill()
    for _ in range(2):
        claim(tmp_path)
