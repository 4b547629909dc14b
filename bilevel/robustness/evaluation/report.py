"""The report, as HTML and as Markdown: the values that the two templates beside this file show."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bilevel.experiment.files import atomic_write
from bilevel.experiment.style import save_png
from bilevel.robustness.evaluation.examples import Example, plot_attacks
from bilevel.robustness.evaluation.plots import inline_svg, plot_curves
from bilevel.robustness.evaluation.results import Evaluation
from bilevel.robustness.evaluation.verdict import headline, not_to_be_quoted
from bilevel.robustness.threats.norms import NORMS

if TYPE_CHECKING:
    from jinja2 import Environment


def write_report(
    folder: str | os.PathLike[str],
    evaluations: Sequence[Evaluation],
    pictures: Mapping[str, Sequence[Example]],
    about: Mapping[str, str],
) -> None:
    """Writes ``report.html``, which needs no other file, and ``report.md`` with its two pictures.

    Args:
        folder: The folder; created if missing.
        evaluations: The classifiers, at least one.
        pictures: Examples of attacked images by the classifier's name; those that are neither grey
            nor of three channels are shown in grey, the mean over their channels.
        about: What the results depend on: dataset, command, date, versions.

    Raises:
        BilevelError: If the files cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> evaluation = Evaluation("pgm", 0.031, None, right=torch.tensor([True, True, False]))
        >>> write_report(folder, [evaluation], {}, {"dataset": "digits"})
        >>> sorted(file.name for file in folder.iterdir())
        ['report.html', 'report.md']
    """
    folder = Path(folder)
    examples = [
        replace(example, title=f"{one.name}: {example.title}")
        for one in evaluations
        for example in pictures.get(one.name, ())
    ]
    quantities = list(
        dict.fromkeys(curve.quantity for one in evaluations for curve in one.measured)
    )
    if quantities:
        save_png(folder / "curves.png", plot_curves(quantities, evaluations))
    if examples:
        save_png(folder / "examples.png", plot_attacks(examples))
    page = {
        "evaluations": evaluations,
        "pictures": pictures,
        "about": about,
        "scope": _scope(evaluations),
        "attacks": _attacks_alone(evaluations),
        "quantities": quantities,
        "headline": headline,
        "not_to_be_quoted": not_to_be_quoted,
        "curve": _curve,
        "images": _images,
        "pictured": bool(examples),
    }
    for suffix in ("html", "md"):
        text = _environment(suffix).get_template(f"page.{suffix}.jinja").render(page)
        with atomic_write(folder / f"report.{suffix}") as part:
            part.write_text(text, encoding="utf-8")


def _scope(evaluations: Sequence[Evaluation]) -> str:
    """The numbers of classifiers and images, and ε."""
    classifiers = f"{len(evaluations)} classifier{'s' * (len(evaluations) > 1)}"
    images = ", ".join(dict.fromkeys(str(len(one.right)) for one in evaluations))
    balls = (f"perturbations up to ‖δ‖{NORMS[o.norm].index} ≤ {o.eps:.3g}" for o in evaluations)
    threats = (one.threat or ball for one, ball in zip(evaluations, balls, strict=True))
    return f"{classifiers}, {images} images, {', '.join(dict.fromkeys(threats))}"


def _attacks_alone(evaluations: Sequence[Evaluation]) -> list[str]:
    """The names of the attacks that have an accuracy of their own."""
    return list(
        dict.fromkeys(
            outcome.name
            for one in evaluations
            for outcome in one.outcomes
            if one.alone(outcome) is not None
        )
    )


def _curve(quantity: str, evaluations: Sequence[Evaluation], only: Evaluation | None = None) -> str:
    """An SVG of all classifiers, one of which may be highlighted."""
    name = only.name if only else "All classifiers"
    figure = plot_curves([quantity], evaluations, only)
    return inline_svg(figure, f"{name}: accuracy against {quantity}")


def _images(one: Evaluation, examples: Sequence[Example]) -> str:
    """An SVG of a classifier's attacked images."""
    return inline_svg(plot_attacks(examples), f"{one.name}: images, clean and attacked")


def _environment(suffix: str) -> Environment:
    """The template environment of a suffix; it escapes all values."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=suffix == "html",
        finalize=_escape_markdown if suffix == "md" else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "standard_error": _standard_error}
    return environment


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _standard_error(share: float, images: int) -> float:
    """Half of Wilson's 68 % interval, which is not 0 where the share is 0 or 1."""
    variance = share * (1 - share) / images
    return math.sqrt(variance + 1 / (2 * images) ** 2) / (1 + 1 / images)


def _escape_markdown(value: object) -> object:
    """A value on one line, with the characters escaped that Markdown would interpret."""
    if hasattr(value, "__html__"):  # marked as safe by the template
        return value
    return re.sub(r"([\\`*_~$|<>\[\]])", r"\\\1", " ".join(str(value).split()))
