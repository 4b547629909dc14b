"""Reading of committed results, and the formats of their figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bilevel.experiment.results import read_results

RESULTS = Path(__file__).parents[1] / "results"
Record = dict[str, Any]


def read(folder: str | Path) -> list[Record]:
    """The records of a results folder; none where there is none."""
    there = (RESULTS / folder / "results.json").exists()
    return read_results(RESULTS / folder)["results"] if there else []


def seeds(pattern: str) -> list[list[Record]]:
    """The records of the same command with several seeds."""
    return [read(path) for path in sorted(RESULTS.glob(pattern))]


def ranged(values: Sequence[float | None], decimals: int = 3) -> str:
    """A mean with its range, or the one value there is."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(set(known)) == 1:
        return f"{known[0]:.{decimals}f}"
    middle, low, high = (f"{f(known):.{decimals}f}" for f in (mean, min, max))
    return f"{middle} ({low}–{high})"


def error_bars(
    values: Collection[Sequence[float]],
) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Means, and how far the least and the greatest are from them."""
    below = [mean(one) - min(one) for one in values]
    above = [max(one) - mean(one) for one in values]
    return [mean(one) for one in values], (below, above)


def per_cent(shares: Sequence[float | None]) -> str:
    """A mean with its range, in per cent."""
    return ranged([None if share is None else 100 * share for share in shares], decimals=1)


def significant(value: float | None, digits: int) -> str:
    """A figure with so many significant digits, without an exponent unless it is tiny."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    if "e-" in text:
        return text.replace("e-0", "e-")
    return f"{float(text):.0f}" if "e" in text else f"{value:#.{digits}g}".rstrip(".")
