"""The paper's figures: robustness curves, and the limit cycle of its Appendix A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from bilevel import Bilevel, FollowerProblem, Parametric, ZeroSum
from bilevel.files import replacing
from bilevel.robustness.evaluation.plots import COLORS
from bilevel.robustness.figures import STYLE

Points = tuple[list[float], list[float]]


def draw_curves(path: Path, evaluated: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> None:
    """Figures 3 and 10: accuracy against ε and against iterations, and the gain over PGM.

    Args:
        path: The PNG file.
        evaluated: The records of ``robust_eval.py``.
        rows: The runs to show; ``pgm``, the one that the others are compared with, among them.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots(2, 2, sharex="col")
        for (top, bottom), quantity in zip(axes.T, ("ε", "iterations"), strict=True):
            curves = {row: _points(evaluated, row, quantity) for row in rows}
            base = dict(zip(*curves.get("pgm", ((), ())), strict=True))
            for color, (row, (at, accuracy)) in zip(COLORS, curves.items(), strict=False):
                look = {"color": color, "marker": "o", "markersize": 3.5, "label": row}
                top.plot(at, accuracy, **look)
                both = [(x, y - base[x]) for x, y in zip(at, accuracy, strict=True) if x in base]
                bottom.plot(*zip(*both, strict=True), **look)
            measured = curves[rows[0]][0]
            if quantity == "ε":
                bottom.set_xscale("symlog", linthresh=0.1)
            else:
                bottom.set_xscale("log")
            bottom.set_xlim(measured[0], measured[-1])
            bottom.xaxis.set_major_formatter("{x:g}")
            bottom.set_xlabel(quantity)
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("gain over pgm")
        axes[0, 0].legend(frameon=False)
        _save(figure, path)


def _points(evaluated: Sequence[Mapping[str, Any]], row: str, quantity: str) -> Points:
    found = [
        (r["at"], r["accuracy"])
        for r in evaluated
        if r["record"] == "curve" and r["classifier"] == row and r["quantity"] == quantity
    ]
    return [at for at, _ in found], [accuracy for _, accuracy in found]


class Product(FollowerProblem):
    """max over y of x·y: the game on which inexact play circles for ever (Appendix A)."""

    sense = "max"

    def init(self, batch: None) -> Tensor:
        """No start: y is the solver's own."""
        return torch.zeros((), dtype=torch.float64)

    def objective(self, leader: ZeroSum, y: Tensor, batch: None) -> Tensor:
        """X·y, of the leader's one weight."""
        return leader.model.weight.sum() * y


def limit_cycle(step: float) -> list[tuple[float, float]]:
    """Simultaneous play on f(x, y) = xy from (1, 0), once around.

    Args:
        step: Both players' step; 1e-4 in the paper.

    Returns:
        The points (x, y).
    """
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    follower = Product()
    leader, solver = ZeroSum(model, follower), Parametric(torch.zeros((), dtype=torch.float64))
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=step),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=step),
    )
    points = [(1.0, 0.0)]
    for _ in range(round(2 * torch.pi / step)):
        game.step(None)
        points.append((model.weight.item(), solver.y.item()))
    return points


def draw_limit_cycle(path: Path, step: float) -> None:
    """Figures 7 and 8: the path of :func:`limit_cycle` over the directions of play.

    Args:
        path: The PNG file.
        step: Both players' step.
    """
    points = limit_cycle(step)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*points, strict=True))
    _arrows(axis)
    (x, y), steps = points[-1], len(points) - 1
    grown, predicted = (x * x + y * y) ** 0.5, (1 + step**2) ** (steps / 2)
    axis.set_title(f"η = {step:g}: radius after one turn {grown:.6f}, √(1+η²)^n = {predicted:.6f}")
    axis.set_aspect("equal")
    axis.set_xlabel("x")
    axis.set_ylabel("y")
    _save(figure, path)


def _arrows(axis: Axes) -> None:
    """The direction (−y, x) in which simultaneous play moves."""
    at = torch.linspace(-1.2, 1.2, 9)
    y, x = torch.meshgrid(at, at, indexing="ij")
    axis.quiver(x, y, -y, x, color="gray", alpha=0.6, width=0.003)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format="png")
