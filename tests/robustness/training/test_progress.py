"""`MetricWindows`: when a window is read, and that NaN is reported."""

from __future__ import annotations

import math
import time
from itertools import count

import pytest
import torch

from bilevel import NonFiniteError, distributed
from bilevel.robustness.training.windows import MetricWindows


def windows(device: str) -> MetricWindows:
    """After a step whose loss is 1."""
    windows = MetricWindows(torch.device(device))
    windows.add({"loss": torch.tensor(1.0)})
    return windows


def test_on_a_gpu_a_window_is_read_when_the_next_one_has_been_launched() -> None:
    late = windows("cuda")
    assert late.close(50, last=False) == []
    for loss in (2.0, 4.0):
        late.add({"loss": torch.tensor(loss)})
    assert late.close(100, last=False) == [(50, {"loss": 1.0})]
    late.add({"loss": torch.tensor(5.0)})
    assert late.close(120, last=True) == [(100, {"loss": 3.0}), (120, {"loss": 5.0})]


def test_on_the_cpu_a_window_is_read_at_once() -> None:
    assert windows("cpu").close(50, last=False) == [(50, {"loss": 1.0})]


def test_a_window_has_the_mean_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_gather", lambda means: [means, {"loss": 4.0}])
    assert windows("cpu").close(50, last=False) == [(50, {"loss": 2.5})]


def test_a_window_that_is_not_read_yet_can_be_checked() -> None:
    late = windows("cuda")
    late.close(50, last=False)
    late.check()
    late.add({"loss": torch.tensor(math.nan)})
    assert late.close(100, last=False) == [(50, {"loss": 1.0})]
    for read in (late.check, lambda: late.close(150, last=True)):
        with pytest.raises(NonFiniteError, match="loss is nan at step 1 of the last 1 read"):
            read()


def test_a_check_tells_how_long_the_host_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a window is unread, the device is training meanwhile."""
    monkeypatch.setattr(time, "perf_counter", count().__next__)
    late = windows("cuda")
    assert late.check() == 0
    late.close(50, last=False)
    assert late.check() == 1
