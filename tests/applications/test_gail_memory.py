"""`applications/gail.py` asks for the memory of a dense updater before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def test_the_dense_updater_asks_for_its_memory(
    applications: Callable[[str], ModuleType], monkeypatch: Any
) -> None:
    games = applications("gail_lib.games")
    assert games.updater_bytes("dense", 2561) == pytest.approx(5.5e9, rel=0.01)
    assert games.updater_bytes("block", 2561) < 1e8
    memory = applications("gail_lib.memory")
    memory.check_memory(1)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(memory.BilevelError, match=r"GiB and .* are available: .*--updater block"):
        memory.check_memory(10**15)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(memory.Confirm, "ask", lambda *_, **__: True)
    memory.check_memory(10**15)


def test_memory_of_the_page_cache_is_available(
    applications: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    """And where the system does not tell, as on macOS, nothing is refused."""
    memory = applications("gail_lib.memory")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.available_memory() is None
    memory.check_memory(10**15)
    (tmp_path / "meminfo").write_text("MemFree:  1000 kB\nMemAvailable:  6000 kB\n")
    assert memory.available_memory() == 6000 * 1024
    memory.check_memory(5000 * 1024)


def test_memory_is_asked_for_as_many_updaters_as_run_at_once(
    applications: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest ones; CartPole's discriminator has 2,561 weights and MountainCar's 2,497."""
    gail, asked = applications("gail"), list[int]()
    monkeypatch.setattr(gail, "check_memory", asked.append)
    two = {"env": ("MountainCar-v0", "CartPole-v1"), "seeds": 2, "updater": "dense"}
    for method, jobs in (("l2l-gail", 3), ("l2l-gail", 9), ("gail", 9)):
        args = gail.Args(**two, method=(method, "constant"), jobs=jobs)
        gail.check(args, gail.plan_runs(args))
    car, pole = (16 * 52 * size**2 for size in (2497, 2561))
    assert asked == [car + 2 * pole, 2 * car + 2 * pole, 0]
