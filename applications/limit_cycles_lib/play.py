"""The trajectory of two players, and how fast it took them to the equilibrium."""

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

ROWS = 2000
"""About how many points of a trajectory are kept."""

FAR = 1e6
"""Players are no longer followed from this many times their first distance on."""

ROUNDED = 1e-12
"""Nearer than this, in units of the first distance, rounding decides where they are."""


@dataclass
class Run:
    """A setting played under a schedule.

    Args:
        setting: The setting.
        schedule: Its name.
        at: Numbers of steps, ``(rows,)``.
        path: Where the players were then, ``(rows, n + m)``.
        distance: How far that is from the equilibrium, ``(rows,)``.
        predicted: The factor a step that theory tells, None where there is none.
        seen_as: What :class:`~bilevel.Monitor` sees in it.
        seconds: How long it took.
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
        """Whether x and y are numbers."""
        return self.path.shape[1] == 2

    def later(self) -> Tensor:
        """Rows of the later half, as far as numbers let us see; a mask."""
        seen = (self.distance > ROUNDED * self.distance[0]) & self.distance.isfinite()
        end = len(seen) if seen.all() else int(seen.int().argmin())
        row = torch.arange(len(seen))
        return (row >= end // 2) & (row < end)

    @property
    def measured(self) -> float | None:
        """The factor a step: a line through the logarithm of the later distances."""
        rows = self.later()
        if rows.sum() < 2:
            return None
        slope, _ = np.polyfit(self.at[rows], self.distance[rows].log(), 1)
        return float(np.exp(slope))

    def record(self) -> dict[str, Any]:
        """The flat record of ``results.json``."""
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


def told(factor: float | None) -> str:
    """A factor a step as text; where it is all but 1, the difference counts."""
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
    tell: Callable[[int], None],
) -> Run:
    """Plays a setting under a schedule; ends early where the players fly apart.

    Args:
        game: The setting's game.
        setting: The setting.
        schedule: The schedule's name.
        predicted: The factor that theory tells.
        tell: Called with the steps done, now and then.

    Returns:
        The run.

    Raises:
        BilevelError: If the players start at the equilibrium.
    """
    began = time.perf_counter()
    players = setting.begin(game, schedule)
    monitor = Monitor(players)
    center = torch.cat(game.equilibrium)
    at, path = [0], [position(players)]
    first = float((path[0] - center).norm())
    if first == 0:
        raise BilevelError(
            f"{setting.title} starts at the equilibrium: nobody moves there; give another --start"
        )
    every = max(1, setting.steps // ROWS)
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
        tell(step)
        if (path[-1] - center).norm() > FAR * first:
            break
    trajectory = torch.stack(path)
    return Run(
        setting,
        schedule,
        torch.tensor(at),
        trajectory.cpu(),
        (trajectory - center).norm(dim=-1).cpu(),
        predicted,
        monitor.verdict().kind,
        time.perf_counter() - began,
    )
