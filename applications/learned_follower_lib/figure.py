"""The figure: trajectories in unseen games, and distances against steps."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bilevel.experiment.style import COLORS, LINE, LOG_STYLE, MUTED, save_png
from bilevel.games import Game
from learned_follower_lib.evaluation import SCHEDULES
from learned_follower_lib.random_games import Start

METHODS = (*SCHEDULES, "learned")
COLOR = dict(zip(METHODS, (COLORS[4], COLORS[5], COLORS[2], COLORS[1], COLORS[0]), strict=True))
TITLES = {"gda": "gradient descent–ascent", "learned": "learned follower"}
PRECISION = 1e-16

Portraits = Mapping[str, tuple[Start, Mapping[str, Tensor]]]
Curves = Mapping[tuple[str, str], Tensor]


def draw(path: Path, portraits: Portraits, curves: Curves, horizon: int) -> None:
    """Draws the figure.

    Args:
        path: The PNG file.
        portraits: By setting, games and the trajectories of each method.
        curves: By setting and method, relative distances, ``(steps + 1, G)``.
        horizon: Of training.
    """
    with rc_context(LOG_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.05, 1))
        upper, lower = parts
        portrayed = [
            (setting, start, paths, game)
            for setting, (start, paths) in portraits.items()
            for game in range(len(start.x))
        ]
        for axes, (setting, start, paths, game) in zip(
            upper.subplots(1, len(portrayed)), portrayed, strict=True
        ):
            _portrait(axes, start, {name: path[:, game] for name, path in paths.items()}, game)
            axes.set_title(f"{setting}, game {game + 1}" if len(start.x) > 1 else setting)
        for axes, setting in zip(lower.subplots(1, len(portraits)), portraits, strict=True):
            _distances(axes, {name: curves[setting, name] for name in METHODS}, horizon)
            axes.set_title(f"{setting}: median and quartiles over games")
        lower.axes[0].set_ylabel("distance ÷ initial distance")
        lower.axes[0].legend(edgecolor="none", fontsize="small", loc="lower left")
        lines, labels = upper.axes[0].get_legend_handles_labels()
        upper.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        save_png(path, figure)


def _portrait(axes: Axes, start: Start, paths: Mapping[str, Tensor], game: int) -> None:
    center = torch.cat(start.game.equilibrium, -1)[game].cpu()
    half = 1.6 * float((paths["gda"] - center).abs().max())
    x, y, u, v = _flow(start.game, game, center, half)
    axes.streamplot(x, y, u, v, color=LINE, linewidth=0.7, arrowsize=0.6)
    for name, path in paths.items():
        axes.plot(*path.T.numpy(), color=COLOR[name], linewidth=1.2, label=TITLES.get(name, name))
    axes.plot(*paths["gda"][0].tolist(), "o", color=MUTED, markersize=4, label="start")
    axes.plot(*center.tolist(), "*", color="black", markersize=9, label="equilibrium")
    (left, bottom), (right, top) = (center - half).tolist(), (center + half).tolist()
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", aspect="equal")


def _flow(game: Game, number: int, center: Tensor, half: float) -> tuple[Any, ...]:
    """A grid around the equilibrium, and the direction of gradient descent–ascent on it."""
    line = torch.linspace(-half, half, 24, dtype=center.dtype, device="cpu")
    grid = torch.meshgrid(center[0] + line, center[1] + line, indexing="xy")
    points = [part.reshape(-1, 1).to(game.equilibrium[0].device) for part in grid]
    one = copy(game)  # one of the stacked games, repeated for every point
    one.count = len(points[0])
    one.coefficients = tuple(
        part[number].expand(one.count, *part.shape[1:]) for part in game.coefficients
    )
    flow = [-part.reshape(grid[0].shape).cpu() for part in one.field(*points)]
    return tuple(part.numpy() for part in (*grid, *flow))


def _distances(axes: Axes, ratios: Mapping[str, Tensor], horizon: int) -> None:
    for name, ratio in ratios.items():
        quartiles = ratio.quantile(ratio.new_tensor([0.25, 0.5, 0.75]), dim=1).clamp(min=PRECISION)
        steps, (low, middle, high) = range(len(ratio)), quartiles.numpy()
        dash = "--" if name == "extragradient" else "-"  # it coincides with optimistic
        axes.plot(steps, middle, dash, color=COLOR[name], label=TITLES.get(name, name))
        axes.fill_between(steps, low, high, color=COLOR[name], alpha=0.15, lw=0)
    axes.axvline(horizon, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set(yscale="log", xlabel="step (dotted line: training horizon)", ylim=(PRECISION, 1e3))
