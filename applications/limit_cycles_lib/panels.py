"""Panels of the figures: a phase portrait, and distances against steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from bilevel.experiment.style import COLORS, INK
from bilevel.games import Game
from limit_cycles_lib.play import Run
from limit_cycles_lib.settings import SCHEDULES

COLOR = dict(zip(SCHEDULES, COLORS, strict=True))
"""Colour of each schedule."""

FIELD = "#c9ced5"
"""Colour of the vector field."""

LEAVING = 3.0
"""Trajectories that end at more than this multiple of their initial distance leave the window."""

NEARLY_CONSTANT = 0.1
"""Distances that change by less than this fraction are shown as changes in per cent."""


def portrait(axis: Axes, game: Game, runs: Sequence[Run], half: float) -> None:
    """Phase portrait of a game of scalars: vector field, trajectories, start and equilibrium.

    Args:
        axis: The axes.
        game: The game.
        runs: The runs to show.
        half: Half the width of the window, see :func:`half_width`.
    """
    center = torch.cat(game.equilibrium)
    low, high = center - half, center + half
    xlim, ylim = torch.stack([low, high], 1).tolist()
    axis.set(xlim=xlim, ylim=ylim, aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    _field(axis, game, low, high)
    width = 1.4 if len(runs) == 1 else 0.8
    for run in runs:
        axis.plot(*run.path.T, color=COLOR[run.schedule], linewidth=width)
        _arrowheads(axis, game, run, half)
        axis.plot(*run.path[0], "o", color=INK, markerfacecolor="white", markersize=5.5, zorder=4)
    axis.plot(*center, "+", color=INK, markersize=10, markeredgewidth=1.8, zorder=4)


def half_width(runs: Sequence[Run]) -> float:
    """Half the width of a window that holds all trajectories but those that leave.

    Args:
        runs: The runs of one setting.

    Returns:
        The largest distance to the equilibrium of the trajectories that stay, with a margin.
    """
    leaving = LEAVING * float(runs[0].distance[0])
    stay = [float(run.distance.max()) for run in runs if run.distance[-1] < leaving]
    return 1.12 * max(stay, default=leaving)


def distances(axis: Axes, runs: Sequence[Run]) -> None:
    """Distance to the equilibrium against steps, with the predicted slope dashed.

    Args:
        axis: The axes.
        runs: The runs of one setting.
    """
    first = float(runs[0].distance[0])
    lowest = min(float(run.distance.min()) for run in runs)
    highest = max(float(run.distance.max()) for run in runs)
    near = first * (1 - NEARLY_CONSTANT) < lowest and highest < first * (1 + NEARLY_CONSTANT)
    scale, offset = (first, 1.0) if near else (1.0, 0.0)
    ends: dict[str, tuple[float, float]] = {}
    for run in runs:
        measured = run.distance / scale - offset
        axis.plot(run.at, measured, color=COLOR[run.schedule], linewidth=3.4, alpha=0.4)
        ends[run.schedule] = float(run.at[-1]), float(measured[-1])
        if run.predicted is not None:
            at, line = _predicted(run)
            axis.plot(at, line / scale - offset, "--", color=COLOR[run.schedule], linewidth=1.3)
    axis.set_xlabel("steps")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlim(0, max(int(run.at[-1]) for run in runs))
    if near:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        axis.set_yscale("log")
        axis.set_ylim(max(lowest, 1e-9 * first) / 1.5, min(highest, 1e3 * first) * 1.5)
    _label_lines(axis, ends)


def _directions(game: Game, points: Tensor) -> Tensor:
    """Normalised directions of simultaneous gradient descent–ascent at the points."""
    field = torch.func.vmap(game.field)(points[:, :1], points[:, 1:])
    return -torch.nn.functional.normalize(torch.cat(field, 1))


def _field(axis: Axes, game: Game, low: Tensor, high: Tensor) -> None:
    """The vector field of descent–ascent on a grid."""
    share = torch.arange(1, 22, 2, dtype=low.dtype).unsqueeze(1) / 22
    x, y = (low + share * (high - low)).T
    points = torch.cartesian_prod(x, y)
    length = 0.6 * float(x[1] - x[0])
    look: dict[str, Any] = {"color": FIELD, "width": 0.005, "headwidth": 4, "headlength": 4}
    look |= {"pivot": "mid", "angles": "xy", "scale_units": "xy", "scale": 1}
    axis.quiver(*points.T, *(length * _directions(game, points)).T, **look)


def _arrowheads(axis: Axes, game: Game, run: Run, half: float) -> None:
    """Up to three arrowheads along the first part of a trajectory."""
    arc_length = run.path.diff(dim=0).norm(dim=1).cumsum(0)
    rows = torch.searchsorted(arc_length, half * torch.tensor([0.45, 1.45, 2.45]).double())
    points = run.path[rows[rows < len(arc_length)]]
    if not len(points):
        return  # the trajectory is too short
    look = {"arrowstyle": "-|>", "color": COLOR[run.schedule], "mutation_scale": 13, "linewidth": 0}
    for point, ahead in zip(points, points + 1e-3 * half * _directions(game, points), strict=True):
        axis.annotate("", ahead.tolist(), point.tolist(), arrowprops=look | {"shrinkB": 0})


def _predicted(run: Run) -> tuple[Tensor, Tensor]:
    """A line with the predicted slope through the mean of the points of the measured fit."""
    rows = run.second_half()
    at, height = run.at[rows].double(), run.distance[rows].log().mean()
    slope = torch.tensor(run.predicted, dtype=torch.float64).log()
    return at, (height + slope * (at - at.mean())).exp()


def _label_lines(axis: Axes, ends: dict[str, tuple[float, float]]) -> None:
    """Labels the end of each line, without overlaps."""
    to_axes = axis.transData + axis.transAxes.inverted()
    at = {name: min(max(float(to_axes.transform(end)[1]), 0), 1) for name, end in ends.items()}
    height = dict(sorted(at.items(), key=lambda one: one[1]))
    for _ in range(100):
        for lower, upper in itertools.pairwise(height):
            overlap = max(0.0, 0.075 - (height[upper] - height[lower]))
            height[lower] -= overlap / 2
            height[upper] += overlap / 2
        height = {name: min(max(place, 0), 1) for name, place in height.items()}
    for name, place in height.items():
        axis.annotate(
            name,
            xy=(1, at[name]),
            xycoords="axes fraction",
            xytext=(1.07, place),
            textcoords="axes fraction",
            color=COLOR[name],
            va="center",
            arrowprops={"arrowstyle": "-", "color": COLOR[name], "relpos": (0, 0.5), "shrinkB": 2},
        )
