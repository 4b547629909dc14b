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
from matplotlib.figure import Figure
from suite.runs import named, over_seeds, runs_of, time_to_pgm
from suite.tables import PAPER, PAPER_PGM20
from tabulated.reading import read

from bilevel import BilevelError
from bilevel.experiment import commandline
from bilevel.experiment.style import COLORS, INK, MUTED, STYLE, save_png

OURS = COLORS[0]


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
        "CIFAR-10, ResNet-18",
        "AutoAttack",
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
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            draw(axes, panel)
        save_png(args.out, figure)


def draw(axes: Axes, panel: Panel) -> None:
    """One panel: hollow markers are published figures, filled ones were measured here."""
    ours = measured(panel)
    points = sorted((*panel.points, *ours), key=lambda point: point.accuracy)
    for name, accuracy in panel.limits:
        axes.axhline(accuracy, color=MUTED, linewidth=0.8, linestyle=":")
        axes.text(0.02, accuracy, name, color=MUTED, fontsize=7, va="bottom")
    axes.set_title(panel.title, loc="left", fontsize=9)
    axes.set_xlabel("training time ÷ PGM-10" + ("" if ours else "\n(ours: not measured)"))
    axes.set_ylabel(f"accuracy, % ({panel.attack})")
    top = max(one.accuracy for one in (*points, Point("", 0, 10)))
    axes.set_xlim(0, 1.2)
    axes.set_ylim(-0.1 * top, 1.2 * top)
    axes.figure.draw_without_rendering()  # lays out, so that it is known where names overlap
    for point in points:
        color = OURS if point.ours else INK
        fill = OURS if point.ours else "white"
        axes.scatter(point.time, point.accuracy, s=36, zorder=3, facecolor=fill, edgecolor=color)
        annotate(axes, point, color)


def annotate(axes: Axes, point: Point, color: str) -> None:
    """A point's name, where there is no other name yet."""
    taken = [text.get_window_extent() for text in axes.texts]
    late = point.time > 0.8  # to the right its name would leave the panel
    name = axes.annotate(
        point.name,
        (point.time, point.accuracy),
        xytext=(0, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        color=color,
        fontsize=8,
    )
    for height in (-11, 6, -22, 17):
        name.set_position((14 if late else 4, height))
        if not any(name.get_window_extent().overlaps(box) for box in taken):
            break


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
