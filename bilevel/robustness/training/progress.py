"""Where a training run stands, what its steps report, and which run a checkpoint is of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel import MetricLog, distributed
from bilevel.errors import BilevelError

Reading = tuple[int, dict[str, float]]
"""Steps done, and the means of the metrics over a window of steps that ends there."""


@dataclass
class Progress:
    """Where a run stands; with the networks and the optimizers it is all that a checkpoint holds.

    Args:
        epoch: The epoch under way, from 0.
        position: Batches of it that are done.
        seconds: Training time of each finished epoch, without evaluation.
        elapsed: Training seconds of the epoch under way.
        history: A record for each finished epoch.
        best: The highest validation accuracy so far.
        best_epoch: The epoch that had it.
    """

    epoch: int = 0
    position: int = 0
    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -1.0
    best_epoch: int = -1


class Windows:
    """Reads the metrics of steps window by window; on a GPU one window late.

    There, a window is read when the next one has been launched, so that within an epoch nothing
    waits for the device.

    Args:
        device: Where the steps are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._late = device.type == "cuda"
        self._log = MetricLog()
        self._unread: deque[tuple[int, Callable[[], dict[str, float]]]] = deque()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Takes in the metrics of a step.

        Args:
            metrics: Scalars.
        """
        self._log.add(metrics)

    def close(self, steps: int, *, last: bool) -> list[Reading]:
        """Ends a window. Collective.

        Args:
            steps: Steps done so far.
            last: Whether to wait for all that is unread, as at an epoch's end.

        Returns:
            What there is to read.
        """
        self._unread.append((steps, self._log.means_later()))
        found = []
        while len(self._unread) > (self._late and not last):
            steps, means = self._unread.popleft()
            found.append((steps, _mean(distributed.all_gather(means()))))
        return found

    def check(self) -> None:
        """Raises ``NonFiniteError`` if a metric of a closed window is NaN or infinite."""
        for _, means in self._unread:
            means()


def check_same_run(path: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another run.

    Args:
        path: Where it lies.
        saved: The values that tell its run from others.
        config: Those of this run.

    Raises:
        BilevelError: If one differs.
    """
    for key in {**config, **saved}:
        if saved.get(key) != config.get(key):
            # Which precision is "auto" depends on the device: the same arguments may not be enough.
            same = f"--precision {saved[key]}" if key == "precision" else "the same arguments"
            raise BilevelError(
                f"{path} is a run with {key} = {saved.get(key)}, this one has {config.get(key)}: a "
                f"run is resumed as it was begun; give {same}, or another --out"
            )


def _mean(reports: list[dict[str, float]]) -> dict[str, float]:
    """What the processes have seen, each on its share."""
    return {name: sum(r[name] for r in reports) / len(reports) for name in reports[0]}
