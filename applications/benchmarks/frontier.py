"""Draws robust accuracy against training time, relative to PGM-10.

    python applications/benchmarks/frontier.py --out docs/images/frontier.png

Hollow markers are published figures; filled markers are the committed results of
``gpu_suite.py``: accuracy under PGM-20 beside the paper's, else under PGM-100, APGD-CE and APGD-T
together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from suite.runs import named, over_seeds, runs_of, time_to_pgm
from suite.tables import PAPER, PAPER_PGM20
from tabulated.reading import read

from bilevel import BilevelError
from bilevel.experiment import commandline
from bilevel.experiment.style import COLORS, INK, MUTED, STYLE, save_png

MARKERS = {
    "plain": "X",
    "pgm": "o",
    "naive-l2l": "P",
    "grad-l2l": "^",
    "two-step-l2l": "s",
    "two-step-pgm": "d",
    "NU-AT": "D",
    "PGD-AT": "v",
}
"""By method; a wide attacker and a warm start have colours of their own."""


@dataclass(frozen=True)
class Point:
    """A classifier: training time divided by PGM-10's, accuracy under attack in per cent."""

    name: str
    time: float
    accuracy: float
    ours: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel of the figure.

    Args:
        title: Data and network.
        attack: The attack of the accuracies.
        points: Published classifiers; drawn hollow.
        folder: Folder of our results.
        model: Our network in that folder.
        key: Our accuracy that is drawn.
        limits: Published accuracies without a comparable training time: a line each.
    """

    title: str
    attack: str
    points: tuple[Point, ...]
    folder: str
    model: str
    key: str = "worst_case"
    limits: tuple[tuple[str, float], ...] = ()


PANELS = (
    Panel(
        "CIFAR-10, WRN-34-10",
        "PGM-20",
        tuple(Point(name, PAPER[name], accuracy) for name, accuracy in PAPER_PGM20.items()),
        "gpu_suite",
        "wrn-34-10",
        "pgm20",
        (("PGD-AT, AutoAttack", 52.7), ("TRADES-AWP, AutoAttack", 56.17)),
    ),
    Panel(
        "CIFAR-10 (ours JPEG-75), ResNet-18",
        "AutoAttack; ours PGM-100, APGD",
        (
            Point("NU-AT", 0.42, 50.10),
            Point("PGD-AT, averaged", 1.0, 50.49),
        ),
        "gpu_suite",
        "resnet18",
    ),
    Panel(
        "CIFAR-10 (JPEG-75, 8,000), WRN-10-1",
        "PGM-100, APGD",
        (),
        "gpu_suite-small",
        "wrn-10-1",
    ),
)


@dataclass
class Args:
    """Draw robust accuracy against training time: published figures and ours."""

    out: Path = Path("docs/images/frontier.png")
    """The PNG file to write."""


def main(args: Args) -> None:
    """Draws all panels."""
    if args.out.suffix != ".png":
        raise BilevelError(f"--out {args.out} is no PNG file: give a name that ends in .png")
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        drawn = {}
        for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            drawn |= draw(axes, panel)
        names = sorted(drawn, key=lambda name: ("published" in name, name))
        figure.legend(
            [drawn[name] for name in names], names, loc="outside lower center", ncols=4, fontsize=8
        )
        save_png(args.out, figure)


def draw(axes: Axes, panel: Panel) -> dict[str, PathCollection]:
    """One panel: hollow markers are published figures, filled ones were measured here.

    Returns:
        The markers, by their names in the legend.
    """
    ours = measured(panel)
    points = (*panel.points, *ours)
    for name, accuracy in panel.limits:
        axes.axhline(accuracy, color=MUTED, linewidth=0.8, linestyle=":")
        axes.text(0.02, accuracy, name, color=MUTED, fontsize=7, va="bottom")
    axes.set_title(panel.title, loc="left", fontsize=9)
    axes.set_xlabel("training time ÷ PGM-10" + ("" if ours else "\n(ours: not measured)"))
    axes.set_ylabel(f"accuracy, %\n({panel.attack})")
    top = max([10.0, *(one.accuracy for one in points)])
    axes.set_xlim(0, 1.1)
    axes.set_ylim(-0.05 * top, 1.15 * top)
    drawn = {}
    for point in points:
        method, *rest = point.name.split(", ")
        kind = 2 if "warm start" in rest else 1 if "wide" in rest else 0
        color = COLORS[kind] if point.ours else INK
        drawn[f"{point.name} ({'ours' if point.ours else 'published'})"] = axes.scatter(
            point.time,
            point.accuracy,
            s=40,
            marker=MARKERS[method],
            facecolor=color if point.ours else "none",
            edgecolor=color,
            zorder=3,
        )
    return drawn


def measured(panel: Panel) -> list[Point]:
    """Our results for the panel's model, where PGM-10 was trained in the same way."""
    found = [one for one in runs_of(read(panel.folder)) if one["model"] == panel.model]
    runs = over_seeds(found)
    times = [(one, time_to_pgm(one, runs)) for one in runs]
    return [
        Point(named(one), time, 100 * one[panel.key], ours=True)
        for one, time in times
        if time is not None
    ]


if __name__ == "__main__":
    commandline.run(main, Args)
