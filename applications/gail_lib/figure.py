"""Figure 6 of the paper: return and discriminator accuracy against iteration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bilevel.experiment.style import COLORS, MUTED, STYLE, save_png
from bilevel.imitation import Demonstrations
from gail_lib.curves import METHODS, TITLES, mean_return, moving_average
from gail_lib.runs import Run

COLOR = dict(zip(METHODS, (COLORS[1], COLORS[0], COLORS[2], MUTED), strict=True))
CURVE_WINDOW = 5
"""Iterations over which the curves are averaged."""


def draw(path: Path, runs: Sequence[Run], experts: dict[str, Demonstrations]) -> None:
    """Draws a column for each environment.

    Args:
        path: The PNG file.
        runs: All runs.
        experts: Demonstrations by environment.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(experts), 5.2), layout="constrained")
        grid: Any = figure.subplots(2, len(experts), sharex="col", squeeze=False)
        for (upper, lower), (env, expert) in zip(grid.T, experts.items(), strict=True):
            of_env = [run for run in runs if run.setting.env == env]
            _returns(upper, of_env, expert)
            for name in ("gail", "l2l-gail"):
                _curve(lower, [_accuracy(r) for r in of_env if r.setting.method == name], name)
            lower.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
            lower.set_ylim(0.35, 1.02)
            lower.set_xlabel("iteration")
            lower.xaxis.set_major_locator(MaxNLocator(integer=True))
            upper.set_title(env)
        grid[0, 0].set_ylabel("return of the policy")
        grid[1, 0].set_ylabel("discriminator accuracy")
        lines, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        save_png(path, figure)


def _returns(axes: Axes, runs: Sequence[Run], expert: Demonstrations) -> None:
    axes.axhline(expert.returns.mean().item(), color=MUTED, linestyle="--", linewidth=1)
    axes.annotate(
        "expert",
        (0.01, expert.returns.mean().item()),
        (2, 3),
        color=MUTED,
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize="small",
    )
    for name in METHODS:
        mine = [run for run in runs if run.setting.method == name]
        if name == "bc" and mine:
            returns = torch.stack([run.returns.mean() for run in mine])
            axes.axhline(returns.mean().item(), color=COLOR[name], linewidth=1, label=TITLES[name])
        else:
            _curve(axes, [mean_return(run, CURVE_WINDOW) for run in mine], name)


def _curve(axes: Axes, curves: Sequence[Tensor], name: str) -> None:
    """The mean over seeds, in a band from the lowest to the highest."""
    if not curves:
        return
    rows = torch.stack(list(curves))
    steps = range(1, rows.shape[1] + 1)
    axes.plot(steps, rows.nanmean(0), color=COLOR[name], linewidth=1.3, label=TITLES[name])
    low, high = rows.nan_to_num(torch.inf).amin(0), rows.nan_to_num(-torch.inf).amax(0)
    axes.fill_between(steps, low, high, color=COLOR[name], alpha=0.18, linewidth=0)


def _accuracy(run: Run) -> Tensor:
    curve = run.curves["accuracy"]
    return moving_average(curve, torch.ones_like(curve), CURVE_WINDOW)
