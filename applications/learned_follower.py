"""A follower with a learned step rule plays min-max games against gradient descent.

    python applications/learned_follower.py             # three followers: ten minutes on one core
    python applications/learned_follower.py --smoke     # seconds

A GRU with 320 parameters is trained to play y in random bilinear games a (x − x*)(y − y*) and
random Forsaken games, while x takes gradient descent steps. It is then evaluated on unseen games,
in and out of the training distribution, beside known methods: does it converge where gradient
descent–ascent diverges, how fast, for how long, and which rule has it learned?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from learned_follower_lib.evaluation import (
    SETTINGS,
    measure,
    measure_pairs,
    schedule_player,
    update_player,
)
from learned_follower_lib.figure import Curves, draw
from learned_follower_lib.linear_rule import fit_rule, rule_record
from learned_follower_lib.random_games import make_generator
from learned_follower_lib.training import TrainingConfig, train
from learned_follower_lib.updates import GradientDifference, ScaledGRU
from torch import Tensor

from bilevel import BilevelError, experiment
from bilevel.arguments import count, positive
from bilevel.experiment import commandline
from bilevel.experiment.checkpoint import check_settings
from bilevel.experiment.files import claim, remove
from bilevel.experiment.tables import Table
from bilevel.experiment.weights import load_weights, read_about, save_weights

Followers = dict[int, ScaledGRU]


@dataclass
class Args:
    """Train followers, evaluate them on unseen games, and report convergence."""

    step: float = 0.1
    """Step size of both players."""
    horizon: int = 50
    """Length of play in training; unseen games are played ten times as long."""
    iterations: int = 400
    """Training steps."""
    batch: int = 128
    """Games per training step."""
    seeds: int = 3
    """Followers to train, with seeds from --seed on."""
    games: int = 256
    """Unseen games per setting."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/learned_follower")
    """Results, weights, figure and TensorBoard logs; replaced without --resume."""
    seed: int = 0
    device: str = "cpu"
    """Games this small are faster on the CPU."""
    smoke: bool = False
    """Try everything in seconds: at most 2 seeds, 8 games and 5 iterations."""
    resume: bool = False
    """Reuse followers trained with the same arguments."""


def main(args: Args) -> None:
    """Trains, evaluates, prints the tables and writes the results."""
    check(args)
    if args.smoke:
        largest = {"horizon": 2, "iterations": 5, "batch": 4, "seeds": 2, "games": 8}
        args = replace(args, **{name: min(n, getattr(args, name)) for name, n in largest.items()})
    device = experiment.pick_device(args.device)
    claim(args.out)
    if not args.resume:  # of all at once: --resume would take the old follower of a later seed
        remove(*(args.out / f"follower-{seed}.safetensors" for seed in seeds_of(args)))
    with device:
        records = compare(args)
    about = experiment.environment(device)
    experiment.write_results(args.out, asdict(args), about, records)
    for table in make_tables(records):
        table.print()
    print(f"results, figure and weights are in {args.out}")


def compare(args: Args) -> list[dict[str, Any]]:
    """Trains the followers, evaluates them in all settings, and draws the figure.

    Returns:
        The records.
    """
    followers = {seed: follower(args, seed) for seed in seeds_of(args)}
    records, rules = fit_rules(args, followers)
    records += measure_pairs(step=args.step, horizon=args.horizon, count=args.games)
    curves: dict[tuple[str, str], Tensor] = {}
    with experiment.ProgressBar("play") as bar:
        measured = measure(followers, rules, step=args.step, horizon=args.horizon, count=args.games)
        for record, ratio in measured:
            bar.show(record["setting"], list(SETTINGS).index(record["setting"]), len(SETTINGS))
            records.append(record)
            if record["seed"] is None:
                curves[record["setting"], record["method"]] = ratio.cpu()
    draw_figure(args, followers, curves)
    return records


def check(args: Args) -> None:
    """Checks the arguments."""
    positive("step", args.step)
    for name in ("horizon", "iterations", "seeds", "games"):
        count(name, getattr(args, name))
    count("batch", args.batch, least=2)  # games of both kinds
    count("seed", args.seed, least=0)
    if args.resume and not args.out.exists():
        raise BilevelError(f"there is no folder {args.out} to resume from: leave out --resume")


def seeds_of(args: Args) -> range:
    """The seeds of the followers."""
    return range(args.seed, args.seed + args.seeds)


def follower(args: Args, seed: int) -> ScaledGRU:
    """A trained follower, loaded from its file with --resume."""
    torch.manual_seed(seed)
    update = ScaledGRU(args.step).double()
    config = TrainingConfig(
        step=args.step, iterations=args.iterations, games=args.batch, horizon=args.horizon
    )
    about = {name: str(value) for name, value in asdict(config).items()} | {"seed": str(seed)}
    path = args.out / f"follower-{seed}.safetensors"
    if args.resume and path.exists():
        check_settings(path, read_about(path), about)
        load_weights(path, update)
        return update
    with experiment.Journal(f"seed {seed}", args.out / f"follower-{seed}") as journal:
        journal.begin(config.iterations)
        train(update, config, seed, journal.report)
    save_weights(path, update, about)
    return update


def fit_rules(
    args: Args, followers: Followers
) -> tuple[list[dict[str, Any]], dict[int, GradientDifference]]:
    """Fits a linear rule to each follower, in the settings with the step sizes of training.

    Returns:
        Records, and by seed the rule fitted on the bilinear games of the training distribution.
    """
    records, rules = [], {}
    for setting, chosen in SETTINGS.items():
        if chosen.lr != (1.0, 1.0):
            continue
        for seed, update in followers.items():
            start = chosen.sample(args.games, make_generator(20_000))
            rule, explained = fit_rule(update, start, 2 * args.horizon)
            records.append(rule_record(setting, seed, rule, explained))
            if setting == "bilinear":
                rules[seed] = rule
    return records, rules


def draw_figure(args: Args, followers: Followers, curves: Curves) -> None:
    """Draws trajectories in a few unseen games of each kind, and the distances."""
    learned = update_player(followers[args.seed])
    players = {"gda": schedule_player("gda"), "learned": learned}
    portraits = {}
    for setting, number in (("bilinear", 1), ("forsaken", 3)):
        start = SETTINGS[setting].sample(number, make_generator(30_000))
        steps, lr = 4 * args.horizon, (args.step, args.step)
        paths = {name: play(start, lr, steps).cpu() for name, play in players.items()}
        portraits[setting] = start, paths
    draw(args.out / "learned_follower.png", portraits, curves, args.horizon)


def make_tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """A table for each setting, of all seeds together, and those of the rules."""
    columns = {
        "distance_at_horizon": "horizon",
        "distance_at_end": "end",
        "factor": "factor",
        "converged": "converged",
        "escaped": "diverged",
    }
    tables = [
        Table(
            f"{setting}: distance ÷ initial distance",
            ("method", *columns.values()),
            tuple(
                (one["method"], *(f"{one[key]:.4g}" for key in columns))
                for one in records
                if one["record"] == "play" and one["setting"] == setting and one["seed"] is None
            ),
        )
        for setting in SETTINGS
    ]
    keys = ("alpha", "beta", "gamma", "explained", "predicted_factor")
    rules = tuple(
        (one["setting"], str(one["seed"]), *(f"{one[key]:.4g}" for key in keys))
        for one in records
        if one["record"] == "rule"
    )
    header = ("setting", "seed", "α", "β", "γ", "explained", "factor")
    tables.append(Table("learned move ≈ α g + β (g − g₋₁) + γ move₋₁", header, rules))
    pairs = tuple(
        tuple(f"{one[key]:.4g}" for key in ("alpha", "beta", "converged", "escaped"))
        for one in records
        if one["record"] == "pair"
    )
    title = "forsaken, move = α g + β (g − g₋₁)"
    return [*tables, Table(title, ("α", "β", "converged", "diverged"), pairs)]


if __name__ == "__main__":
    commandline.run(main, Args)
