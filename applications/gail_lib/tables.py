"""What came of the runs, as records and as tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from result_tables import Table

from bilevel.experiment.files import atomic_write
from bilevel.imitation import Demonstrations
from gail_lib.figure import METHODS, TITLES, mean_return
from gail_lib.runs import Run

CURVES = ("return", "episodes", "objective", "accuracy", "norm", "kl", "explained_variance")

SPAN = 10
"""Iterations whose episodes' mean return is looked at."""


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
        curve = mean_return(run, SPAN)
        near = (curve >= goal - 0.1 * abs(goal)).nonzero().flatten()
        if len(near):
            told["reached"] = int(near[0]) + 1
            told["worst_after"] = curve[int(near[0]) :].min().item()
        for name in ("objective", "accuracy", "norm"):
            told[name] = run.curves[name][-SPAN:].mean().item()
    return told


def write_curves(path: Path, runs: Sequence[Run]) -> None:
    """Every iteration of every run, as CSV."""
    with atomic_write(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("env", "method", "seed", "iteration", *CURVES))
        for run in runs:
            rows = zip(*(run.curves.get(name, ()) for name in CURVES), strict=True)
            for iteration, row in enumerate(rows, 1):
                numbers = (f"{value:.6g}" for value in row)
                setting = run.setting
                writer.writerow((setting.env, setting.method, setting.seed, iteration, *numbers))


def tabulate(env: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """One environment: a line for each method, means and spreads over seeds.

    ``near after`` is the iteration from which :data:`SPAN` together came within 10 % of the expert,
    ``worst since`` the least mean return of as many after that.
    """
    expert = records[0]["expert"]
    header = ("method", "return", "near after", "worst since", "objective", "accuracy", "‖θ_D‖")
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
