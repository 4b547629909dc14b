"""The imitation kit compared with gymnasium, TRPO of sb3-contrib and GAIL of ``imitation``.

    pip install sb3-contrib
    python -m venv other && other/bin/pip install imitation "sb3-contrib<2.3"   # gymnasium 0.29
    python applications/benchmarks/imitation.py --imitation other/bin/python

Five tables: steps per second of sixteen environments with our policy in the loop, against the same
environments with actions sampled beforehand; TRPO at equal environment steps, returns and speed;
the learned updaters; parallel seeds; an iteration of GAIL. Runs are interleaved, ratios are
medians. What is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from timing import interleaved, ratios
from torch import Tensor

from bilevel import BilevelError, experiment
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim
from bilevel.experiment.tables import Table, cell
from bilevel.imitation import (
    Demonstrations,
    MountainCarExpert,
    Sampler,
    Task,
    demonstrate,
    make_envs,
    save_demonstrations,
    train_expert,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from gail import Args as GailArgs
from gail import plan_runs
from gail_lib.games import make_trainer
from imitation_lib import ours, sb3_trpo
from imitation_lib.sb3_trpo import ENVIRONMENTS

ENV = "MountainCar-v0"
ENVS = ("CartPole-v1", ENV, "Pendulum-v1")
Record = dict[str, Any]


@dataclass
class Args:
    """Time rollouts, TRPO and GAIL, and compare with other packages."""

    rounds: int = 15
    steps: int = 5000
    """Environment steps per rollout, over all environments; rounded up to a multiple of 16."""
    seeds: int = 3
    """Seeds of each TRPO implementation."""
    iterations: int = 15
    """Iterations of TRPO on CartPole."""
    imitation: Path | None = None
    """A Python interpreter with the package imitation."""
    out: Path = Path("runs/imitation")
    smoke: bool = False
    """Seconds instead of minutes."""


def main(args: Args) -> None:
    """Measures, prints tables and writes the results."""
    for name in ("rounds", "steps", "seeds", "iterations"):
        count(name, getattr(args, name))
    if args.imitation is not None and shutil.which(args.imitation) is None:
        raise BilevelError(
            f"there is no interpreter {args.imitation}: see the first lines of this file for how "
            "to install imitation, or leave out --imitation"
        )
    claim(args.out)
    torch.set_num_threads(1)
    if args.smoke:
        args.rounds, args.steps, args.seeds, args.iterations = 2, 320, 1, 2
    args.steps = ENVIRONMENTS * -(-args.steps // ENVIRONMENTS)  # of all packages, in one rollout
    records = [rollouts(env, args) for env in ENVS] + trpo(args)
    records += ours.updaters(args.rounds, ("coordinate", "block") + ("dense",) * (not args.smoke))
    records += ours.side_by_side(max(1, args.rounds // 5), 2 if args.smoke else 40)
    if args.imitation is not None:
        records += gail(args, args.imitation)
    environment = experiment.environment(torch.device("cpu"))
    experiment.write_results(args.out, asdict(args), environment, records)
    for kind in dict.fromkeys(record["measured"] for record in records):
        print_table(kind, [record for record in records if record["measured"] == kind])


def rollouts(env: str, args: Args) -> Record:
    """Steps per second: of the environments alone, and with the policy choosing the actions."""
    envs = make_envs(env, ENVIRONMENTS)
    sampler = Sampler(make_envs(env, ENVIRONMENTS), Task.of(envs).policy())
    count = args.steps // ENVIRONMENTS
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(count)]
    turns = {
        "raw": lambda: [envs.step(action) for action in actions],
        "ours": lambda: sampler.collect(count),
    }
    seconds = interleaved(turns, track(range(args.rounds), f"rollouts, {env}"))
    steps = count * ENVIRONMENTS
    return {
        "measured": "rollouts",
        "env": env,
        "raw, steps a second": steps / statistics.median(seconds["raw"]),
        "with the policy": steps / statistics.median(seconds["ours"]),
        "share": statistics.median(ratios(seconds["raw"], seconds["ours"])),
    }


def trpo(args: Args) -> list[Record]:
    """TRPO on CartPole at equal environment steps; the implementations alternate."""
    records = []
    train_expert("CartPole-v1", 2)  # warm-up
    for seed in track(range(args.seeds), "TRPO"):
        returns: list[float] = []
        begun = time.perf_counter()
        train_expert(
            "CartPole-v1",
            args.iterations,
            steps=args.steps,
            environments=ENVIRONMENTS,
            seed=seed,
            callback=partial(append_mean, returns),
        )
        records.append(trpo_record("bilevel", seed, args, time.perf_counter() - begun, returns))
        if importlib.util.find_spec("sb3_contrib"):
            seconds, theirs = sb3_trpo.train("CartPole-v1", seed, args.iterations, args.steps)
            records.append(trpo_record("sb3-contrib", seed, args, seconds, theirs))
    return records


def append_mean(means: list[float], _: int, returns: Tensor) -> None:
    """Appends the mean return of an iteration, NaN if no episode ended in it."""
    means.append(returns.mean().item())


def trpo_record(who: str, seed: int, args: Args, seconds: float, returns: list[float]) -> Record:
    """The record of one run of TRPO, from the mean return of each iteration."""
    known = [one for one in returns if not math.isnan(one)]
    return {
        "measured": "TRPO on CartPole-v1",
        "by": who,
        "seed": seed,
        "mean return": statistics.fmean(known) if known else None,
        "last return": known[-1] if known else None,
        "iterations to 490": next((i + 1 for i, r in enumerate(returns) if r >= 490), None),
        "steps a second": args.iterations * args.steps / seconds,
    }


def gail(args: Args, python: Path) -> list[Record]:
    """GAIL on MountainCar: rollout, five steps of D, TRPO, three epochs of the value function."""
    demonstrations = demonstrate(ENV, MountainCarExpert(), 10, seed=99)
    (setting,) = plan_runs(GailArgs(env=(ENV,), method=("gail",), steps=args.steps))
    trainer = make_trainer(setting, *demonstrations.subsample())
    ours, theirs = [], []
    for _ in track(range(max(2, args.rounds // 3)), "GAIL"):
        ours += interleaved({"ours": trainer.iterate}, range(3))["ours"]
        theirs += time_imitation_package(python, demonstrations, args.steps)
    return [
        {
            "measured": "GAIL on MountainCar-v0",
            "bilevel, s an iteration": statistics.median(ours),
            "imitation, s an iteration": statistics.median(theirs),
            "ratio": statistics.median(ours) / statistics.median(theirs),
        }
    ]


def time_imitation_package(python: Path, demonstrations: Demonstrations, steps: int) -> list[float]:
    """Seconds of three iterations, measured by another interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demonstrations.npz"
        save_demonstrations(path, demonstrations)
        script = Path(__file__).parent / "imitation_lib" / "imitation_gail.py"
        command = [str(python), str(script), ENV, str(path), str(steps), "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BilevelError(
            f"{python} could not run imitation ({done.stderr.strip().splitlines()[-1:]}): see the "
            "first lines of this file for how to install it"
        )
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return seconds


def print_table(title: str, records: list[Record]) -> None:
    """Prints one kind of records."""
    names = [name for name in records[0] if name != "measured"]
    rows = [[text(record[name]) for name in names] for record in records]
    Table(title, names, rows).print()


def text(value: Any) -> str:
    """A value as text."""
    if isinstance(value, float):
        return f"{value:.3g}" if value < 10 else f"{value:,.0f}"
    return cell(value, "")


if __name__ == "__main__":
    commandline.run(main, Args)
