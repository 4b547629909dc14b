"""The figures: one per setting, Figures 7 and 8 of the paper, and an overview."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from bilevel.experiment.style import INK, LOG_STYLE, MUTED, save_png
from bilevel.games import Game
from limit_cycles_lib.panels import COLOR, distances, half_width, portrait
from limit_cycles_lib.play import Run, format_factor
from limit_cycles_lib.settings import Setting


def draw_setting(path: Path, game: Game, runs: Sequence[Run]) -> None:
    """Draws the distances, and for scalar x and y a phase portrait of each schedule.

    Args:
        path: The PNG file.
        game: The game.
        runs: The runs of one setting.
    """
    with rc_context(LOG_STYLE):
        if runs[0].in_plane:
            figure = Figure(figsize=(13, 6.4), layout="constrained")
            left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.25, 1))[0]
            _portraits(left, game, runs)
        else:
            figure = right = Figure(figsize=(7.5, 4.4), layout="constrained")
        distances(right.subplots(), runs)
        right.suptitle("Distance to the equilibrium")
        figure.suptitle(runs[0].setting.title, fontweight="bold")
        _legend(figure)
        save_png(path, figure)


def draw_paper(path: Path, game: Game, runs: Sequence[Run]) -> None:
    """Draws Figures 7 and 8: one revolution from (1, 0), and the change of the radius.

    Args:
        path: The PNG file.
        game: f(x, y) = xy.
        runs: The runs of :func:`~limit_cycles_lib.settings.one_revolution`.
    """
    with rc_context(LOG_STYLE):
        figure = Figure(figsize=(9.5, 5), layout="constrained")
        _paper(figure, (1, 2), game, runs)
        _legend(figure)
        save_png(path, figure)


def draw_overview(
    path: Path, games: Mapping[str, Game], played: Mapping[Setting, Sequence[Run]]
) -> None:
    """Draws the overview of the bilinear game and Forsaken on one page.

    Args:
        path: The PNG file.
        games: The games by name.
        played: The runs of :data:`~limit_cycles_lib.settings.OVERVIEW`, or shortened ones.
    """
    paper, larger_step, far_start, near_start = played.values()
    with rc_context(LOG_STYLE | {"font.size": 11}):
        figure = Figure(figsize=(16, 8.4), layout="constrained")
        figure.suptitle(
            "Limit cycles: which schedules cycle, and which converge",
            fontsize=20,
            fontweight="bold",
        )
        left, middle, right = figure.subfigures(1, 3, squeeze=False, width_ratios=(1, 2.2, 1.25))[0]
        _paper(left, (2, 1), games["bilinear"], paper)
        step = larger_step[0].setting.step
        _heading(middle, f"f = xy with a larger step size, η = {step:g}")
        _portraits(middle, games["bilinear"], larger_step)
        top, bottom = right.subfigures(2, 1, squeeze=False).flat
        _heading(top, f"f = xy, η = {step:g}: distance to (0, 0)")
        distances(top.subplots(), larger_step)
        _forsaken(bottom, games["forsaken"], far_start, near_start)
        _legend(figure)
        save_png(path, figure)


def _paper(
    figure: Figure | SubFigure, shape: tuple[int, int], game: Game, runs: Sequence[Run]
) -> None:
    setting = runs[0].setting
    parts = figure.subfigures(*shape, squeeze=False).flat
    circle, radius = (part.subplots() for part in parts)
    _heading(figure, f"f = xy as in the paper, η = {setting.step:g}")
    portrait(circle, game, runs[:1], 1.3)
    circle.set_xlabel(f"{runs[0].schedule}, {setting.steps:,} steps from (1, 0)")
    distances(radius, runs)
    radius.set_title("Change of the radius", loc="left")


def _portraits(figure: Figure | SubFigure, game: Game, runs: Sequence[Run]) -> None:
    """A phase portrait of each schedule, with its factors."""
    half = half_width(runs)
    columns = min(3, len(runs))
    axes = figure.subplots(math.ceil(len(runs) / columns), columns, squeeze=False).flat
    for axis, run in itertools.zip_longest(axes, runs):
        if run is None:
            axis.set_axis_off()
            continue
        portrait(axis, game, [run], half)
        axis.set_title(run.schedule, color=COLOR[run.schedule], fontweight="bold", loc="left")
        axis.set_xlabel(
            f"× {format_factor(run.measured)} per step\npredicted {format_factor(run.predicted)}\n",
            loc="left",
        )


def _forsaken(figure: SubFigure, game: Game, far: Sequence[Run], near: Sequence[Run]) -> None:
    step = far[0].setting.step
    _heading(figure, f"f = x(y − 0.45) + φ(x) − φ(y), η = {step:g}")
    for axis, runs in zip(figure.subplots(1, 2), (far, near), strict=True):
        portrait(axis, game, runs, half_width(runs))
        x, y = runs[0].setting.start
        axis.set_title(f"from ({x:g}, {y:g})", loc="left")
        axis.set_xlabel(f"verdict: {', '.join(sorted({run.seen_as for run in runs}))}", loc="left")


def _heading(figure: Figure | SubFigure, text: str) -> None:
    figure.suptitle(text, fontweight="bold")


def _legend(figure: Figure) -> None:
    """The legend of the markers and lines, below the figure."""
    marks: dict[str, Any] = {"color": INK, "linestyle": ""}
    figure.legend(
        handles=[
            Line2D([], [], marker="o", markerfacecolor="white", label="start", **marks),
            Line2D([], [], marker="+", label="equilibrium", **marks),
            Line2D([], [], color=MUTED, linewidth=3.4, alpha=0.4, label="measured"),
            Line2D([], [], color=MUTED, linestyle="--", label="predicted slope"),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        labelcolor=MUTED,
    )
