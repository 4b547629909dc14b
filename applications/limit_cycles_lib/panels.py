"""The panels that the figures are made of: a phase portrait, distances against steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from bilevel.alias import SCHEDULES
from bilevel.games import Game
from bilevel.robustness.evaluation.plots import COLORS
from bilevel.robustness.figures import INK
from limit_cycles_lib.play import Run

COLOR = dict(zip(SCHEDULES, COLORS, strict=False))
"""Of each schedule, in every figure."""

FIELD = "#c9ced5"
"""Of the arrows that tell where players want to go."""

LEFT = 3.0
"""Players who end up farther than this many times their first distance have left for good."""

NEAR = 0.1
"""Distances that never change by more than this part are shown as changes in per cent."""


def portrait(axis: Axes, game: Game, runs: Sequence[Run], half: float) -> None:
    """The plane of a game of two numbers: its field, trajectories, start and equilibrium.

    Args:
        axis: Where it is drawn.
        game: The game.
        runs: What is shown.
        half: Half the width of the window, see :func:`window`.
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
        _heads(axis, game, run, half)
        axis.plot(*run.path[0], "o", color=INK, markerfacecolor="white", markersize=5.5, zorder=4)
    axis.plot(*center, "+", color=INK, markersize=10, markeredgewidth=1.8, zorder=4)


def window(runs: Sequence[Run]) -> float:
    """Half the width of a window with room for all trajectories but those that leave for good.

    Args:
        runs: Of one setting.

    Returns:
        The farthest distance from the equilibrium among those that stay, with a margin.
    """
    leaving = LEFT * float(runs[0].distance[0])
    stay = [float(run.distance.max()) for run in runs if run.distance[-1] < leaving]
    return 1.12 * max(stay, default=leaving)


def distances(axis: Axes, runs: Sequence[Run]) -> None:
    """Distance to the equilibrium against steps; dashed over it the predicted slope.

    Args:
        axis: Where it is drawn.
        runs: Of one setting.
    """
    first = float(runs[0].distance[0])
    lowest = min(float(run.distance.min()) for run in runs)
    highest = max(float(run.distance.max()) for run in runs)
    near = first * (1 - NEAR) < lowest and highest < first * (1 + NEAR)
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
    _name_ends(axis, ends)


def _toward(game: Game, points: Tensor) -> Tensor:
    """The directions in which both players go at once from some points, of length 1."""
    slopes = torch.func.vmap(game.field)(points[:, :1], points[:, 1:])
    return -torch.nn.functional.normalize(torch.cat(slopes, 1))


def _field(axis: Axes, game: Game, low: Tensor, high: Tensor) -> None:
    """Those directions on a grid."""
    share = torch.arange(1, 22, 2, dtype=low.dtype).unsqueeze(1) / 22
    x, y = (low + share * (high - low)).T
    points = torch.cartesian_prod(x, y)
    length = 0.6 * float(x[1] - x[0])
    look: dict[str, Any] = {"color": FIELD, "width": 0.005, "headwidth": 4, "headlength": 4}
    look |= {"pivot": "mid", "angles": "xy", "scale_units": "xy", "scale": 1}
    axis.quiver(*points.T, *(length * _toward(game, points)).T, **look)


def _heads(axis: Axes, game: Game, run: Run, half: float) -> None:
    """Up to three arrowheads along the first part of a trajectory."""
    walked = run.path.diff(dim=0).norm(dim=1).cumsum(0)
    rows = torch.searchsorted(walked, half * torch.tensor([0.45, 1.45, 2.45]).double())
    points = run.path[rows[rows < len(walked)]]
    if not len(points):
        return  # it never came so far
    look = {"arrowstyle": "-|>", "color": COLOR[run.schedule], "mutation_scale": 13, "linewidth": 0}
    for point, ahead in zip(points, points + 1e-3 * half * _toward(game, points), strict=True):
        axis.annotate("", ahead.tolist(), point.tolist(), arrowprops=look | {"shrinkB": 0})


def _predicted(run: Run) -> tuple[Tensor, Tensor]:
    """The line of the predicted slope through the middle of what the measured slope is of."""
    rows = run.later()
    at, height = run.at[rows].double(), run.distance[rows].log().mean()
    slope = torch.tensor(run.predicted, dtype=torch.float64).log()
    return at, (height + slope * (at - at.mean())).exp()


def _name_ends(axis: Axes, ends: dict[str, tuple[float, float]]) -> None:
    """Each line's name beside its end, far enough apart to be read."""
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
