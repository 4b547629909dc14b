"""What came of the runs, as records and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from reproduction.tables import Table

from bilevel.imitation import Demonstrations
from imitating.figure import METHODS, TITLES, smooth
from imitating.runs import Run

SPAN = 10
"""Iterations whose mean return is looked at."""


def record(run: Run, expert: Demonstrations) -> dict[str, Any]:
    """A run in numbers: where it came, when, and whether it stayed there."""
    goal = expert.returns.mean().item()
    told: dict[str, Any] = {
        **asdict(run.setting),
        "expert": goal,
        "return": run.returns.mean().item(),
        "return_std": run.returns.std().item(),
        "seconds": run.seconds,
        "reached": None,
        "worst_after": None,
    }
    if "return" in run.curves:
        curve = smooth(run.curves["return"], SPAN)
        near = (curve >= goal - 0.1 * abs(goal)).nonzero().flatten()
        if len(near):
            told["reached"] = int(near[0]) + 1
            told["worst_after"] = curve[int(near[0]) :].min().item()
        for name in ("objective", "accuracy", "norm"):
            told[name] = run.curves[name][-SPAN:].mean().item()
        told["curve"] = [round(value, 2) for value in curve.tolist()]
    return told


def tabulate(env: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """One environment: a line for each method, means and spreads over seeds."""
    expert = records[0]["expert"]
    header = ("method", "return", "within 10 % after", "worst afterwards", "D's objective",
              "accuracy", "‖θ_D‖", "s an iteration")  # fmt: skip
    rows = []
    for name in METHODS:
        mine = [one for one in records if one["method"] == name]
        if mine:
            reached = [one["reached"] for one in mine if one["reached"] is not None]
            rows.append(
                (
                    TITLES[name],
                    spread([one["return"] for one in mine], 1),
                    _reached(reached, len(mine)) if name != "bc" else "–",
                    spread([one["worst_after"] for one in mine if one["reached"]], 0),
                    spread([one["objective"] for one in mine if "objective" in one], 2),
                    spread([one["accuracy"] for one in mine if "accuracy" in one], 2),
                    spread([one["norm"] for one in mine if "norm" in one], 1),
                    spread([one["seconds"] for one in mine], 2) if name != "bc" else "–",
                )
            )
    return Table(f"{env}: the expert earns {expert:.1f}", header, tuple(rows))


def _reached(iterations: Sequence[int], runs: int) -> str:
    if not iterations:
        return f"0 of {runs}"
    return f"{len(iterations)} of {runs}, {min(iterations)} to {max(iterations)}"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    numbers = torch.tensor(values, dtype=torch.float64)
    text = f"{numbers.mean():.{digits}f}"
    return text + (f" ± {numbers.std():.{digits}f}" if len(values) > 1 else "")
