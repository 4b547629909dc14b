"""Memory is what tensors take at the peak of a computation."""

from __future__ import annotations

import os

import pytest
import torch

from bilevel.experiment.memory import peak_mib


def test_memory_is_that_of_what_lives_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(2**18) + 1  # two of a MiB each

    peak = peak_mib(one_after_the_other, torch.device("cpu"))
    assert peak == pytest.approx(2, abs=0.01)


def test_nothing_takes_nothing() -> None:
    assert peak_mib(lambda: None, torch.device("cpu")) == 0


def test_on_a_gpu_it_is_the_rise_above_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now, peaks = 3 * 2**20, [9 * 2**20]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: max(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.clear())
    assert peak_mib(lambda: peaks.append(now + 2**21), torch.device("cuda")) == 2


def test_the_profilers_library_is_silenced_and_no_file_left_open(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def lowest_free() -> tuple[int, int]:
        for file in (free := os.pipe()):
            os.close(file)
        return free

    free = lowest_free()
    peak_mib(lambda: os.write(2, b"from the library"), torch.device("cpu"))
    os.write(2, b"from us")
    assert capfd.readouterr().err == "from us"
    assert lowest_free() == free
