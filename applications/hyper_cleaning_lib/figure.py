"""The figure: ROC curves, a histogram of the weights, and the samples of smallest weight."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bilevel.experiment.style import BAD, COLORS, INK, LOG_STYLE, MUTED, STROKES, save_png
from hyper_cleaning_lib.data import Corrupted
from hyper_cleaning_lib.metrics import Roc

ROWS, COLUMNS = 3, 5
"""The grid of images."""


def draw(
    path: Path, curves: Mapping[str, Roc], name: str, weights: Tensor, data: Corrupted
) -> None:
    """Draws the figure.

    Args:
        path: The PNG file.
        curves: ROC curve of each adjoint.
        name: The adjoint whose weights are shown.
        weights: Its weights, ``(N,)``.
        data: The images.
    """
    with rc_context(LOG_STYLE):
        figure = Figure(figsize=(14, 4.4), layout="constrained")
        left, middle, right = figure.subfigures(1, 3, squeeze=False, width_ratios=(1.2, 1, 1.2))[0]
        _curves(left.subplots(), curves)
        left.suptitle("Detection of wrong labels (ROC)", fontweight="bold")
        _weights(middle.subplots(), weights, data.wrong)
        middle.suptitle(f"Learned weights, {name}", fontweight="bold")
        _smallest(right, weights, data)
        right.suptitle("Smallest weights: given label → correct label", fontweight="bold")
        save_png(path, figure)


def _curves(axis: Axes, curves: Mapping[str, Roc]) -> None:
    styles = itertools.product(STROKES, COLORS)
    widths = torch.linspace(5, 1.2, len(curves)).tolist()  # coinciding curves stay visible
    for (name, curve), (stroke, color), width in zip(curves.items(), styles, widths, strict=False):
        label = f"{name}  {curve.auc:.3f}"
        axis.plot(
            curve.false_positives,
            curve.true_positives,
            stroke,
            color=color,
            linewidth=width,
            label=label,
        )
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
    axis.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    axis.set_xlabel("false positive rate (correct labels flagged)")
    axis.set_ylabel("true positive rate (wrong labels found)")
    axis.legend(loc="lower right", title="area under the curve", frameon=False)


def _weights(axis: Axes, weights: Tensor, wrong: Tensor) -> None:
    bins = torch.linspace(0, 1, 31).tolist()
    for chosen, color, label in ((~wrong, COLORS[0], "correct"), (wrong, BAD, "wrong")):
        values = weights[chosen].tolist()
        axis.hist(values, bins, color=color, alpha=0.65, label=f"{len(values)} {label} labels")
    axis.set(xlim=(0, 1), yscale="log")
    axis.set_xlabel("weight σ(θ)")
    axis.set_ylabel("samples")
    axis.legend(frameon=False)


def _smallest(figure: SubFigure, weights: Tensor, data: Corrupted) -> None:
    side = round(data.images.train.x.shape[1] ** 0.5)
    axes = figure.subplots(ROWS, COLUMNS).flat
    for axis, sample in zip(axes, weights.argsort(stable=True).tolist(), strict=False):
        axis.imshow(data.images.train.x[sample].view(side, side).tolist(), cmap="gray_r")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
        given = data.classes[int(data.images.train.y[sample])]
        right = data.classes[int(data.truth[sample])]
        wrong = bool(data.wrong[sample])
        text = f"{given} → {right}" if wrong else given
        axis.set_title(text, color=INK if wrong else BAD, fontsize=8)
