"""Trajectories of two players, and their convergence factors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel import BilevelError, NonFiniteError
from bilevel.experiment import checkpoint
from bilevel.games import Game, position
from bilevel.monitoring import Monitor
from limit_cycles_lib.settings import Setting

MAX_ROWS = 2000
"""Approximate number of points kept of a trajectory."""

MAX_DISTANCE = 1e6
"""Play ends at this distance to the equilibrium, relative to the initial one."""

ROUNDING = 1e-12
"""Relative distance below which rounding errors dominate."""


@dataclass
class Run:
    """A setting played under a schedule.

    Args:
        setting: The setting.
        schedule: The name of the schedule.
        at: The steps at which points are kept, ``(rows,)``.
        path: The points, ``(rows, n + m)``.
        distance: Their distances to the equilibrium, ``(rows,)``.
        predicted: The factor per step of the linearised game; None if there is no prediction.
        seen_as: The verdict of :class:`~bilevel.Monitor`.
        seconds: Duration.
    """

    setting: Setting
    schedule: str
    at: Tensor
    path: Tensor
    distance: Tensor
    predicted: float | None
    seen_as: str
    seconds: float

    @property
    def in_plane(self) -> bool:
        """Whether x and y are scalars."""
        return self.path.shape[1] == 2

    def second_half(self) -> Tensor:
        """Mask of the second half of the rows, up to the first that rounding dominates."""
        valid = (self.distance > ROUNDING * self.distance[0]) & self.distance.isfinite()
        end = len(valid) if valid.all() else int(valid.int().argmin())
        row = torch.arange(len(valid))
        return (row >= end // 2) & (row < end)

    @property
    def measured(self) -> float | None:
        """The factor per step: a log-linear fit to the distances of the second half."""
        rows = self.second_half()
        if rows.sum() < 2:
            return None
        slope, _ = np.polyfit(self.at[rows], self.distance[rows].log(), 1)
        return float(np.exp(slope))

    def record(self) -> dict[str, Any]:
        """A record of ``results.json``."""
        start_x, start_y = self.setting.start
        return {
            "game": self.setting.game,
            "step": self.setting.step,
            "start_x": start_x,
            "start_y": start_y,
            "schedule": self.schedule,
            "steps": int(self.at[-1]),
            "measured": self.measured,
            "predicted": self.predicted,
            "seen_as": self.seen_as,
            "distance": float(self.distance[-1]),
            "seconds": self.seconds,
        }

    def save(self, path: Path) -> None:
        """Writes it to a file."""
        checkpoint.save(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Run:
        """Reads what :meth:`save` wrote."""
        state = checkpoint.load(path)
        return cls(**state | {"setting": Setting(**state["setting"])})


def format_factor(factor: float | None) -> str:
    """A factor as text; close to 1, its difference from 1."""
    if factor is None:
        return "–"
    if 1e-15 < abs(factor - 1) < 1e-6:
        return f"1 {'+' if factor > 1 else '−'} {abs(factor - 1):.1e}"
    return f"{factor:.6f}"


def play(
    game: Game,
    setting: Setting,
    schedule: str,
    predicted: float | None,
    progress: Callable[[int], None],
) -> Run:
    """Plays a setting under a schedule; ends early if the players diverge.

    Args:
        game: The setting's game.
        setting: The setting.
        schedule: The schedule's name.
        predicted: The predicted factor.
        progress: Called with the number of steps done.

    Returns:
        The run.

    Raises:
        BilevelError: If the players start at the equilibrium.
    """
    started = time.perf_counter()
    players = setting.begin(game, schedule)
    monitor = Monitor(players)
    center = torch.cat(game.equilibrium)
    at, path = [0], [position(players)]
    first = float((path[0] - center).norm())
    if first == 0:
        raise BilevelError(
            f"{setting.title} starts at the equilibrium: nothing moves there; give another --start"
        )
    every = max(1, setting.steps // MAX_ROWS)
    for step in range(1, setting.steps + 1):
        try:
            players.step(None)
            monitor.observe()
        except NonFiniteError:
            break
        if step % every and step < setting.steps:
            continue
        at.append(step)
        path.append(position(players))
        progress(step)
        if (path[-1] - center).norm() > MAX_DISTANCE * first:
            break
    trajectory = torch.stack(path)
    return Run(
        setting,
        schedule,
        torch.tensor(at),
        trajectory.cpu(),
        (trajectory - center).norm(dim=-1).cpu(),
        predicted,
        # It ends early where it is far away, which may be before the monitor can tell.
        monitor.verdict().kind if at[-1] == setting.steps else "diverging",
        time.perf_counter() - started,
    )
