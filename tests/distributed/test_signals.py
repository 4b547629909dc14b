"""Joining a job takes SIGTERM only where nothing else has it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from bilevel.distributed import job


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Enters a job of this process alone, and tells whether it handles SIGTERM."""
    before, wakeup = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    monkeypatch.setattr(job, "_job", None)

    def enter() -> bool:
        here = signal.getsignal(signal.SIGTERM)
        job._enter(dist.HashStore())
        assert job._job is not None
        return signal.getsignal(signal.SIGTERM) != here

    yield enter
    signal.signal(signal.SIGTERM, before)
    signal.set_wakeup_fd(wakeup)


def test_the_systems_default_is_replaced(enter) -> None:
    assert enter()


def test_a_handler_of_ones_own_is_kept(enter) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)
    assert not enter()


def test_another_thread_joins_without(enter) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(enter).result()


def test_windows_has_neither_the_signal_nor_pipes_that_do_not_block(enter, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "set_blocking")
    assert not enter()
