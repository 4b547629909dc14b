"""A follower whose step rule is learned plays min-max games against gradient descent.

    python applications/learned_follower.py             # three followers: ten minutes on one core
    python applications/learned_follower.py --smoke     # seconds

A GRU with 320 parameters is trained to play y in random bilinear games a (x − x*)(y − y*) and
random Forsaken games, while x descends. Then it plays unseen games, also of other kinds, next to
known methods. Does it converge where gradient descent–ascent diverges? How fast, for how long, and
which rule has it learned?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from learned_follower_lib.evaluation import SETTINGS, by_schedule, by_update, measure
from learned_follower_lib.figure import Curves, draw
from learned_follower_lib.linear_rule import read_off, told
from learned_follower_lib.random_games import random_numbers
from learned_follower_lib.training import Plan, train
from learned_follower_lib.updates import GradientDifference, ScaledGRU
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bilevel import BilevelError, experiment
from bilevel.experiment import commandline
from bilevel.experiment.files import make_folder
from bilevel.robustness.networks.weights import load_weights, read_about, save_weights
from bilevel.updates.checks import positive

Followers = dict[int, ScaledGRU]


@dataclass
class Args:
    """Train followers, play unseen games, and report convergence."""

    step: float = 0.1
    """Step size of both players."""
    horizon: int = 50
    """Steps of play in training; unseen games are played ten times as long."""
    iterations: int = 400
    """Training steps."""
    batch: int = 128
    """Games per training step."""
    seeds: int = 3
    """Followers to train, with seeds from --seed on."""
    games: int = 256
    """Unseen games of each setting."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/learned_follower")
    """Results, weights, figure and TensorBoard logs; replaced without --resume."""
    seed: int = 0
    device: str = "cpu"
    """Games this small are faster on the CPU."""
    smoke: bool = False
    """Try everything in seconds: short training, short play, few games."""
    resume: bool = False
    """Reuse followers that were trained with the same arguments."""


def main(args: Args) -> None:
    """Trains, plays, prints the table and writes the results."""
    check(args)
    if args.smoke:
        args.horizon, args.iterations, args.batch, args.seeds, args.games = 2, 5, 4, 2, 8
    device = experiment.pick_device(args.device)
    make_folder(args.out)
    with device:
        records = compare(args)
    about = experiment.environment(device)
    experiment.write_results(args.out, asdict(args), about, records)
    print_tables(records)


def compare(args: Args) -> list[dict[str, Any]]:
    """Trains the followers, plays all settings, and draws the figure.

    Returns:
        The records.
    """
    followers = {seed: follower(args, seed) for seed in range(args.seed, args.seed + args.seeds)}
    records, rules = read_all(args, followers)
    curves: dict[tuple[str, str], Tensor] = {}
    with experiment.ProgressBar("play") as bar:
        measured = measure(followers, rules, step=args.step, horizon=args.horizon, count=args.games)
        for record, ratio in measured:
            bar.show(record["setting"], list(SETTINGS).index(record["setting"]), len(SETTINGS))
            records.append(record)
            if record["seed"] is None:
                curves[record["setting"], record["method"]] = ratio.cpu()
    picture(args, followers, curves)
    return records


def check(args: Args) -> None:
    """Says so where an argument is out of its range."""
    positive("step", args.step)
    for name in ("horizon", "iterations", "seeds", "games", "batch"):
        least = 2 if name == "batch" else 1  # a batch holds games of two kinds
        if getattr(args, name) < least:
            raise BilevelError(
                f"{name} is {getattr(args, name)}: there is nothing to do; give {least} or more"
            )
    if args.seed < 0:
        raise BilevelError(f"seed is {args.seed}: seeds are counted from 0; give 0 or more")


def follower(args: Args, seed: int) -> ScaledGRU:
    """A trained follower, from its file if the run goes on."""
    torch.manual_seed(seed)
    update = ScaledGRU(args.step).double()
    plan = Plan(step=args.step, iterations=args.iterations, games=args.batch, horizon=args.horizon)
    about = {name: str(value) for name, value in asdict(plan).items()} | {"seed": str(seed)}
    path = args.out / f"follower-{seed}.safetensors"
    if args.resume and path.exists():
        if read_about(path) != about:
            raise BilevelError(
                f"{path} was trained with {read_about(path)}: this run has {about}; give the same "
                "arguments, or leave out --resume"
            )
        load_weights(path, update)
        return update
    with experiment.Journal(f"seed {seed}", args.out / f"follower-{seed}") as journal:
        journal.begin(plan.iterations)
        train(update, plan, seed, journal.report)
    save_weights(path, update, about)
    return update


def read_all(
    args: Args, followers: Followers
) -> tuple[list[dict[str, Any]], dict[int, GradientDifference]]:
    """What each follower does in the settings where both players' steps are the training's.

    Returns:
        Records, and by seed the rule that tells its play in bilinear games of the family.
    """
    records, rules = [], {}
    for setting, chosen in SETTINGS.items():
        if chosen.lr != (1.0, 1.0):
            continue
        for seed, update in followers.items():
            start = chosen.sample(args.games, random_numbers(20_000))
            rule, explained = read_off(update, start, 2 * args.horizon)
            records.append(told(setting, seed, rule, explained))
            if setting == "bilinear":
                rules[seed] = rule
    return records, rules


def picture(args: Args, followers: Followers, curves: Curves) -> None:
    """Some unseen games of each kind, and the distances."""
    learned = by_update(followers[args.seed])
    players = {"gda": by_schedule("gda"), "learned": learned}
    portraits = {}
    for setting, number in (("bilinear", 1), ("forsaken", 3)):
        start = SETTINGS[setting].sample(number, random_numbers(30_000))
        steps, lr = 4 * args.horizon, (args.step, args.step)
        paths = {name: play(start, lr, steps).cpu() for name, play in players.items()}
        portraits[setting] = start, paths
    draw(args.out / "learned_follower.png", portraits, curves, args.horizon)


def print_tables(records: Sequence[dict[str, Any]]) -> None:
    """Play of all seeds together, and the rules."""
    quantities = ("distance_at_horizon", "distance_at_end", "factor", "converged", "escaped")
    play = Table("setting", "method", *quantities, title="unseen games: medians and shares")
    numbers = ("alpha", "beta", "gamma", "explained", "predicted_factor")
    rules = Table("setting", "seed", *numbers, title="learned move ≈ α g + β (g − g₋₁) + γ move₋₁")
    for one in records:
        if one["record"] == "rule":
            rules.add_row(
                one["setting"], str(one["seed"]), *(f"{one[name]:.4g}" for name in numbers)
            )
        elif one["seed"] is None:
            play.add_row(
                one["setting"], one["method"], *(f"{one[name]:.4g}" for name in quantities)
            )
    console = Console()
    console.print(play)
    console.print(rules)


if __name__ == "__main__":
    commandline.run(main, Args)
