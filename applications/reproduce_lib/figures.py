"""Figures 3 and 10 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from bilevel.experiment.style import COLORS, STYLE, save_png

Points = tuple[list[float], list[float]]


def draw_curves(path: Path, evaluated: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> None:
    """Draws Figures 3 and 10: accuracy against ε and against iterations, and the gain over PGM.

    Args:
        path: The PNG file.
        evaluated: The records of ``robust_eval.py``.
        rows: The rows to show, ``pgm`` among them, which the others are compared with. One whose
            curve was not measured is left out.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots(2, 2, sharex="col")
        for (top, bottom), quantity in zip(axes.T, ("ε", "iterations"), strict=True):
            curves = {row: _points(evaluated, row, quantity) for row in rows}
            base = dict(zip(*curves["pgm"], strict=True))
            measured = [x for at, _ in curves.values() for x in at]
            for color, (row, (at, accuracy)) in zip(COLORS, curves.items(), strict=False):
                if not at:
                    continue
                look = {"color": color, "marker": "o", "markersize": 3.5, "label": row}
                top.plot(at, accuracy, **look)
                both = [(x, y - base[x]) for x, y in zip(at, accuracy, strict=True) if x in base]
                bottom.plot([x for x, _ in both], [gain for _, gain in both], **look)
            if quantity == "ε":
                bottom.set_xscale("symlog", linthresh=0.1)
            else:
                bottom.set_xscale("log")
            if measured:
                bottom.set_xlim(min(measured), max(measured))
            bottom.xaxis.set_major_formatter("{x:g}")
            bottom.set_xlabel(quantity)
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("gain over pgm")
        fullest = max(axes[0], key=lambda one: len(one.lines))
        if fullest.lines:
            fullest.legend(frameon=False)
        save_png(path, figure)


def _points(evaluated: Sequence[Mapping[str, Any]], row: str, quantity: str) -> Points:
    found = [
        (r["at"], r["accuracy"])
        for r in evaluated
        if r["record"] == "curve" and r["classifier"] == row and r["quantity"] == quantity
    ]
    return [at for at, _ in found], [accuracy for _, accuracy in found]
