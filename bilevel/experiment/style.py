"""The style that all figures share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel.experiment.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, BAD = "#1c2024", "#60666e", "#dfe2e6", "#b3261e"
"""Colours of text, secondary text, thin lines, and what is wrong."""

COLORS = (
    *("#2f7ed8", "#d97706", "#12936f", "#a855c7", "#d6456b"),
    *("#7c8a12", "#0e93a8", "#8d6e63", "#3f51b5"),
)
"""Of the lines of a plot, readable on white and on black."""

STROKES = ("-", "--", ":")
"""Line styles: the next one when all colours are used."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "grid.color": LINE,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
}
"""For ``matplotlib.rc_context``."""

LOG_STYLE = STYLE | {"text.parse_math": True}
"""The same for logarithmic axes, whose labels are powers of ten."""


def save_png(path: str | os.PathLike[str], figure: Figure) -> None:
    """Writes a figure.

    Args:
        path: The PNG file; its folder is created if missing.
        figure: The figure.

    Raises:
        BilevelError: If it cannot be written.
    """
    with atomic_write(Path(path)) as part:
        figure.savefig(part, dpi=144, format="png")
