"""Cost of an observation by the monitor relative to a training step.

    OMP_NUM_THREADS=1 python applications/benchmarks/monitor.py

Steps and observations are interleaved in one run; the share is a median over them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from tabulated import minmax
from timing import interleaved, ratios
from torch import nn

from bilevel import Bilevel, Monitor, ZeroSum, experiment, pgm
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim
from bilevel.robustness import (
    RECIPES,
    Attacker,
    Batch,
    Linf,
    build_model,
    make_game,
    make_solver,
)

NETWORKS = {"linear": (1, 8, 64), "small-cnn": (1, 8, 64), "resnet18": (3, 32, 8)}
"""Channels, height and batch size of each."""


@dataclass
class Args:
    """Time Monitor.observe and Bilevel.step for classifiers of three sizes."""

    rounds: int = 20
    out: Path = Path("runs/monitor")
    device: str = "auto"
    smoke: bool = False
    """Two rounds, without the large network."""


def main(args: Args) -> None:
    """Measures, prints the table and writes the results."""
    count("rounds", args.rounds)
    device = experiment.pick_device(args.device)
    claim(args.out)
    names = list(NETWORKS)
    if args.smoke:
        args.rounds, names = 2, names[:-1]
    records = [measure(name, args.rounds, device) for name in names]
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    print(minmax.monitor(records))


def measure(name: str, rounds: int, device: torch.device) -> dict[str, str | float]:
    """Medians of a step, of an observation and of their ratio."""
    game, batch = make(name, device)
    monitor = Monitor(game)
    turns = {"step": lambda: game.step(batch), "observe": monitor.observe}
    interleaved(turns, range(1), device)
    seconds = interleaved(turns, range(rounds), device)
    return {
        "network": name,
        "step_ms": 1e3 * median(seconds["step"]),
        "observe_ms": 1e3 * median(seconds["observe"]),
        "share_percent": 100 * median(ratios(seconds["observe"], seconds["step"])),
    }


def make(name: str, device: torch.device) -> tuple[Bilevel, Batch]:
    """A game of a classifier against a learned attacker, of the linear one against one PGM step."""
    channels, height, size = NETWORKS[name]
    x = torch.rand(size, channels, height, height, device=device)
    batch, follower = Batch(x, torch.randint(10, (size,), device=device)), Linf(0.1)
    if name == "linear":
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(channels * height**2, 10))
        solver = pgm(0.1, 1)
    else:
        model = build_model(name, channels=channels, classes=10)
        network = Attacker("two-layer", width=16)
        solver = make_solver("two-step-l2l", eps=0.1, channels=channels, attacker=network)
    leader = ZeroSum(model.to(device), follower)
    return make_game(leader, follower, solver.to(device), RECIPES["digits"]), batch


if __name__ == "__main__":
    commandline.run(main, Args)
