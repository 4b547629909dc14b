"""The progress of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """The progress of a run; a checkpoint holds it beside networks and optimizers.

    Args:
        epoch: The current epoch, from 0.
        position: Number of its batches that are done.
        seconds: Training time of each finished epoch, without evaluation.
        elapsed: Training seconds of the current epoch.
        history: A record for each finished epoch.
        best_epoch: The epoch of the highest validation accuracy so far; −1 before the first one.
    """

    epoch: int = 0
    position: int = 0
    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
