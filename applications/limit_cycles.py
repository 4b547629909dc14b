"""Limit cycles: games on which training cycles, and the schedules that converge.

    python applications/limit_cycles.py                              # all games, minutes
    python applications/limit_cycles.py --game bilinear --step 0.1 0.5 --start 1 1 --steps 300
    python applications/limit_cycles.py --game forsaken --schedule simultaneous optimistic --animate

Plays games with known equilibria under every schedule, among them f(x, y) = xy of Figures 7 and 8
of Jiang et al. (AISTATS 2021). Draws trajectories and distances to the equilibrium, and compares
the convergence factor per step with that of the linearised game.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from limit_cycles_lib.animation import animate
from limit_cycles_lib.figures import draw_overview, draw_paper, draw_setting
from limit_cycles_lib.play import Run, format_factor, play
from limit_cycles_lib.settings import (
    OVERVIEW,
    SCHEDULES,
    SETTINGS,
    Setting,
    make_game,
    one_revolution,
    shortened,
)

from bilevel import BilevelError, alias, experiment
from bilevel.arguments import choices, count
from bilevel.experiment import ProgressBar, commandline
from bilevel.experiment.files import claim
from bilevel.experiment.tables import Table, write_markdown
from bilevel.games import Game


@dataclass
class Args:
    """Play games with known equilibria under every schedule: which converge, and how fast?"""

    game: tuple[str, ...] = tuple(SETTINGS)
    """bilinear, matrix, monotone, forsaken, dirac-gan, simplex."""
    schedule: tuple[str, ...] = tuple(alias.SCHEDULES)
    """simultaneous, alternating, extragradient, optimistic, proximal-point, lookahead; and of those
    that read second derivatives consensus, symplectic-adjustment, competitive-gradient."""
    step: tuple[float, ...] = ()
    """Step sizes of both players; by default each game's own."""
    start: tuple[float, float] | None = None
    """Initial value of all entries of x, and of y; in simplex, the share of the first strategy."""
    steps: int | None = None
    """Steps to play; by default each game's own."""
    animate: bool = False
    """Also draw the trajectories as GIFs, where x and y are scalars."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/limit_cycles")
    """Figures, tables, results and trajectories."""
    seed: int = 0
    """Seed of the matrix game's random singular vectors; nothing else is random."""
    device: str = "cpu"
    """auto, cpu or cuda; games this small are faster on the CPU."""
    smoke: bool = False
    """Try everything in seconds: fewer steps, and a larger step size for the paper's game."""
    resume: bool = False
    """Reuse the trajectories of a stopped run."""


def main(args: Args) -> None:
    """Plays, then draws, prints the tables and writes the results."""
    args.game = choices("game", args.game, SETTINGS)
    args.schedule = choices("schedule", args.schedule, SCHEDULES)
    device = experiment.pick_device(args.device)
    if args.resume and not list(args.out.glob("trajectories/*.pt")):
        raise BilevelError(
            f"there are no trajectories in {args.out} to resume from: leave out --resume"
        )
    count("seed", args.seed, least=0)
    games = {name: make_game(name, args.seed) for name in args.game}
    played = play_all(args, games, device)
    tables = []
    for setting, runs in played.items():
        draw_setting(args.out / f"{setting.name}.png", games[setting.game], runs)
        if args.animate and runs[0].in_plane:
            animate(args.out / f"{setting.name}.gif", games[setting.game], runs)
        tables.append(tabulate(runs))
    overview = [shortened(setting) if args.smoke else setting for setting in OVERVIEW]
    if all(setting in played for setting in overview):
        runs_of = {setting: played[setting] for setting in overview}
        draw_overview(args.out / "limit-cycles.png", games, runs_of)
    records = [run.record() for runs in played.values() for run in runs]
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    write_markdown(args.out / "tables.md", tables)
    for table in tables:
        table.print()
    print(f"figures, tables and results are in {args.out}")


def select_settings(args: Args) -> list[Setting]:
    """The settings to play: all of each game, or its first with --step or --start."""
    settings = []
    for name in args.game:
        given = bool(args.step or args.start)
        for setting in SETTINGS[name][: 1 if given else None]:
            setting = shortened(setting) if args.smoke else setting
            start = args.start or setting.start
            steps = setting.steps if args.steps is None else args.steps
            settings += [
                replace(setting, step=step, start=start, steps=steps)
                for step in args.step or (setting.step,)
            ]
    return list(dict.fromkeys(settings))


def play_all(
    args: Args, games: Mapping[str, Game], device: torch.device
) -> dict[Setting, list[Run]]:
    """Plays every setting under every schedule, and saves each run when it is done."""
    with torch.device(device):
        on_device = {name: make_game(name, args.seed) for name in games}
    settings, schedules = select_settings(args), args.schedule
    total = sum(setting.steps for setting in settings) * len(schedules)
    done = 0
    played: dict[Setting, list[Run]] = {}
    with ProgressBar("limit cycles") as bar:
        for setting in settings:
            played[setting] = []
            for schedule in schedules:
                name = f"{setting.name}-{setting.steps}-steps-seed-{args.seed}-{schedule}.pt"
                path = args.out / "trajectories" / name
                if args.resume and path.exists():
                    run = Run.load(path)
                else:
                    progress = partial(advance, bar, setting.title, total, done)
                    predicted = games[setting.game].factor(SCHEDULES[schedule](), setting.step)
                    run = play(on_device[setting.game], setting, schedule, predicted, progress)
                    claim(args.out)
                    run.save(path)
                played[setting].append(run)
                done += setting.steps
    return played


def advance(bar: ProgressBar, part: str, total: int, done: int, step: int) -> None:
    """Advances the progress bar; ``done`` counts the steps of earlier runs."""
    bar.show(part, done + step, total)


def draw_figures_7_8(path: Path, step: float) -> None:
    """Draws Figures 7 and 8 of the paper for a step size; reuses saved trajectories."""
    setting = one_revolution(step)
    args = Args((setting.game,), step=(step,), start=setting.start, steps=setting.steps)
    args = replace(args, out=path.parent / "limit-cycle", resume=True)
    games = {setting.game: make_game(setting.game, args.seed)}
    played = play_all(args, games, torch.device("cpu"))
    draw_paper(path, games[setting.game], played[setting])


def tabulate(runs: Sequence[Run]) -> Table:
    """The table of one setting: measured and predicted factors."""
    header = ("schedule", "measured", "predicted", "seen as", "distance")
    rows = tuple(
        (
            run.schedule,
            format_factor(run.measured),
            format_factor(run.predicted),
            run.seen_as,
            f"{run.distance[-1]:.3g}",
        )
        for run in runs
    )
    return Table(f"{runs[0].setting.title}: factor a step", header, rows)


if __name__ == "__main__":
    commandline.run(main, Args)
