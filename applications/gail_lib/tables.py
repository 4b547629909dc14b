"""Results of the runs as records, CSV and tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bilevel.experiment.files import atomic_write
from bilevel.experiment.tables import Table, mean_std
from bilevel.imitation import Demonstrations
from gail_lib.curves import METHODS, TITLES, mean_return
from gail_lib.runs import Run

CURVES = ("return", "episodes", "objective", "accuracy", "norm", "kl", "explained_variance")

NEAR_WINDOW = 10
"""Iterations over which returns and metrics are averaged."""


def record(run: Run, expert: Demonstrations) -> dict[str, Any]:
    """The record of a run for ``results.json``; the keys are explained at :func:`tabulate`."""
    goal = expert.returns.mean().item()
    summary: dict[str, Any] = {
        **asdict(run.setting),
        "expert": goal,
        "return": run.returns.mean().item(),
        "return_std": run.returns.std().item(),
        "seconds": run.seconds,
        "reached": None,
        "worst_after": None,
    }
    if "return" in run.curves:
        curve = mean_return(run, NEAR_WINDOW)
        near = (curve >= goal - 0.1 * abs(goal)).nonzero().flatten()
        if len(near):
            summary["reached"] = int(near[0]) + 1
            later = curve[int(near[0]) :]
            summary["worst_after"] = later[~later.isnan()].min().item()  # NaN: no episode has ended
        for name in ("objective", "accuracy", "norm"):
            summary[name] = run.curves[name][-NEAR_WINDOW:].mean().item()
    return summary


def write_curves(path: Path, runs: Sequence[Run]) -> None:
    """Writes every iteration of every run as CSV."""
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("env", "method", "seed", "iteration", *CURVES))
        for run in runs:
            rows = zip(*(run.curves.get(name, ()) for name in CURVES), strict=True)
            for iteration, row in enumerate(rows, 1):
                numbers = (f"{value:.6g}" for value in row)
                setting = run.setting
                writer.writerow((setting.env, setting.method, setting.seed, iteration, *numbers))


def tabulate(env: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """The table of an environment: a row per method, mean ± standard deviation over seeds.

    ``near after`` (``reached``) is the first iteration at which the mean return of
    :data:`NEAR_WINDOW` iterations is within 10 % of the expert's, ``worst since``
    (``worst_after``) the lowest mean of as many from there on.
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
                    mean_std([one["return"] for one in mine], 1),
                    _reached(reached, len(mine)) if name != "bc" else "–",
                    mean_std([one["worst_after"] for one in mine if one["reached"]], 0),
                    mean_std([one["objective"] for one in mine if "objective" in one], 2),
                    mean_std([one["accuracy"] for one in mine if "accuracy" in one], 2),
                    mean_std([one["norm"] for one in mine if "norm" in one], 1),
                )
            )
    return Table(f"{env}: the expert earns {expert:.1f}", header, tuple(rows))


def _reached(iterations: Sequence[int], runs: int) -> str:
    if not iterations:
        return f"0 of {runs}"
    return f"{len(iterations)} of {runs}, {min(iterations)} to {max(iterations)}"
