"""Plots of accuracy under attack, as PNG files and as SVG inside the report."""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bilevel.experiment.style import BAD, COLORS, INK, LINE, MUTED, STROKES, STYLE
from bilevel.robustness.evaluation.results import Curve, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSS_COLORS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", BAD: "var(--bad)"}


def plot_curves(
    names: Sequence[str], evaluations: Sequence[Evaluation], only: Evaluation | None = None
) -> Figure:
    """Accuracy against some quantities, a line for each classifier.

    Args:
        names: The quantities, a panel each.
        evaluations: The classifiers.
        only: The classifier to highlight; the others are then grey.

    Returns:
        The figure.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(names), 2.9), layout="constrained")
        for axis, quantity in zip(
            figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
        ):
            _panel(axis, quantity, evaluations, only)
    return figure


def inline_svg(figure: Figure, name: str) -> str:
    """A figure as an inline SVG with the page's font, width and colours.

    Args:
        figure: The figure.
        name: Its label for screen readers, unique in the page.

    Returns:
        An ``<svg>`` element.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    used = set(re.findall(r"#(\w+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    for color, css in CSS_COLORS.items():
        svg = svg.replace(color, css)
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    return f'<svg role="img" aria-label="{html.escape(name)}" {box[0] if box else ""}>{body}'


def _panel(
    axis: Axes, quantity: str, evaluations: Sequence[Evaluation], only: Evaluation | None
) -> None:
    from matplotlib.ticker import PercentFormatter

    shown = [
        (one, curve, COLORS[i % len(COLORS)], STROKES[i // len(COLORS) % len(STROKES)])
        for i, one in enumerate(evaluations)
        for curve in one.measured
        if curve.quantity == quantity
    ]
    _draw_lines(axis, shown, only)
    images = sorted({curve.images for _, curve, _, _ in shown})
    axis.set_title(f"Accuracy against {quantity}", loc="left", fontweight="bold")
    axis.set_title(f"{', '.join(map(str, images))} images", loc="right", color=MUTED)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    linear, label = 1.0, quantity
    if quantity == "ε":
        evaluated = {one.eps for one in evaluations}
        linear, label = max(evaluated), "ε (dotted line: evaluated ε; logarithmic beyond it)"
        for eps in evaluated:
            axis.axvline(eps, color=MUTED, linewidth=0.9, linestyle=":")
    axis.set(ylim=(0, 1), xlabel=label)
    _scale(axis, {at for _, curve, _, _ in shown for at in curve.at}, linear)


def _draw_lines(
    axis: Axes, shown: Sequence[tuple[Evaluation, Curve, str, Any]], only: Evaluation | None
) -> None:
    """A line for each curve, with its name unless one is highlighted."""
    for one, curve, color, stroke in shown:
        if only is None or one is only:
            style: dict[str, Any] = {"color": color, "linestyle": stroke, "marker": "o"}
            style |= {"clip_on": False, "zorder": 3, "label": one.name}
        else:
            style = {"color": MUTED, "alpha": 0.35, "zorder": 1}
        axis.plot(curve.at, curve.accuracy, markersize=3.5, **style)
    if only is None and len(shown) <= len(COLORS):
        _label_lines(axis, [line[:3] for line in shown])
    elif only is None:
        axis.legend(bbox_to_anchor=(1.01, 1.05), loc="upper left", frameon=False, fontsize=6.5)


def _scale(axis: Axes, measured: set[float], linear: float) -> None:
    """Linear up to a value, logarithmic beyond it; ticks at measured points as space allows."""
    axis.set_xscale("symlog", linthresh=linear)
    if len(measured) > 1:
        axis.set_xlim(min(measured), max(measured))
    axis.minorticks_off()
    ordered = sorted(measured, key=lambda value: (value != linear, value))
    place = {value: float(axis.transScale.transform((value, 0))[0]) for value in ordered}
    width = max(place.values()) - min(place.values())
    ticks: dict[float, str] = {}
    for value in ordered:
        label = f"{value:.3g}" if value < 1 else f"{value:g}"
        distance = 0.02 * (len(label) + 1) * width
        if all(abs(place[value] - place[tick]) >= distance for tick in ticks):
            ticks[value] = label
    axis.set_xticks(list(ticks), list(ticks.values()))


def _label_lines(axis: Axes, shown: Sequence[tuple[Evaluation, Curve, str]]) -> None:
    """Each line's name beside its end, without overlap."""
    free = -1.0
    for one, curve, color in sorted(shown, key=lambda line: line[1].accuracy[::-1]):
        text = textwrap.fill(one.name, 19, max_lines=2, placeholder="…")
        half = 0.038 * len(text.splitlines())
        height = max(curve.accuracy[-1], free + half)
        free = height + half
        axis.annotate(
            text,
            xy=(curve.at[-1], curve.accuracy[-1]),
            xytext=(1.05, height),
            textcoords=("axes fraction", "data"),
            color=color,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "relpos": (0, 0.5), "shrinkB": 4},
        )
