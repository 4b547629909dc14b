"""Times of functions that take turns, so that a busy machine slows all alike, and their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TypeVar

import torch

CPU = torch.device("cpu")
Clock = Callable[[], float]
Turn = Callable[[], object]
_Name = TypeVar("_Name")


def interleaved(
    turns: Mapping[_Name, Turn],
    rounds: Iterable[object],
    device: torch.device = CPU,
    clock: Clock = time.perf_counter,
) -> dict[_Name, list[float]]:
    """Seconds of a turn in each round, the device's work included.

    The caller warms up, for example by a round whose times it drops.
    """
    times = dict.fromkeys(turns, 1)
    if device.type == "cuda":  # handed several at once, as in training: it hides what Python does
        for name, turn in turns.items():
            times[name] = max(1, min(10, int(0.3 / timed(turn, device, clock))))
    seconds: dict[_Name, list[float]] = {name: [] for name in turns}
    for _ in rounds:
        for name, turn in turns.items():
            seconds[name].append(timed(turn, device, clock, times[name]))
    return seconds


def timed(turn: Turn, device: torch.device, clock: Clock, times: int = 1) -> float:
    """Seconds of a turn, one of so many in a row."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    begun = clock()
    for _ in range(times):
        turn()
    synchronize()
    return (clock() - begun) / times


def ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratio in each round: what slowed a round slowed both sides."""
    return [mine / theirs for mine, theirs in zip(times, others, strict=True)]


def spread(name: str, times: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest ratio of a round."""
    found = ratios(times, others)
    return {name: median(found), f"{name}_min": min(found), f"{name}_max": max(found)}
