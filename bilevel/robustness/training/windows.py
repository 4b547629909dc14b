"""The metrics of a training run's steps, averaged over windows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from bilevel import MetricLog, distributed

Window = tuple[int, dict[str, float]]
"""Steps done, and the means of the metrics over the window of steps that ends there."""


class MetricWindows:
    """Averages the metrics of steps over windows; on a GPU each is read one window late.

    There, a window is read after the next one has been launched, so that within an epoch the host
    does not wait for the device.

    Args:
        device: The device that computes the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._late = device.type == "cuda"
        self._log = MetricLog()
        self._unread: deque[tuple[int, Callable[[], dict[str, float]]]] = deque()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Adds the metrics of a step.

        Args:
            metrics: Scalars.
        """
        self._log.add(metrics)

    def close(self, steps: int, *, last: bool) -> list[Window]:
        """Ends a window. Collective.

        Args:
            steps: Steps done so far.
            last: Whether to read all windows, as at the end of an epoch and before a checkpoint.

        Returns:
            The windows that are read now.
        """
        self._unread.append((steps, self._log.means_later()))
        read = []
        while len(self._unread) > (self._late and not last):
            steps, means = self._unread.popleft()
            read.append((steps, _mean(distributed.all_gather(means()))))
        return read

    def check(self) -> float:
        """Raises ``NonFiniteError`` if a metric of a closed window is NaN or infinite.

        Returns:
            Seconds for which the host has waited for the device, which are time of training.
        """
        begun = time.perf_counter()
        for _, means in self._unread:
            means()
        return time.perf_counter() - begun if self._unread else 0.0


def _mean(reports: list[dict[str, float]]) -> dict[str, float]:
    """The mean over the processes."""
    return {name: sum(r[name] for r in reports) / len(reports) for name in reports[0]}
