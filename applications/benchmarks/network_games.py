"""Cost of a step of each schedule between two networks, relative to a simultaneous step.

    OMP_NUM_THREADS=1 python applications/benchmarks/network_games.py

A generator and a critic of three layers each, in a zero-sum game with gradient steps, by width. The
measurements are interleaved; a ratio is the median over rounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.progress import track
from tabulated import minmax
from timing import Turn, interleaved, ratios
from torch import Tensor, nn
from torch.func import functional_call

import bilevel
from bilevel import experiment
from bilevel.alias import SCHEDULES
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim

BATCH, NOISE, DATA = 128, 64, 256

MAKERS = {
    **SCHEDULES,
    "consensus": lambda: bilevel.Consensus(0.1),
    "symplectic adjustment": bilevel.SymplecticAdjustment,
    # Of a tolerance that ends no solve early.
    "competitive gradient, 1 iteration": lambda: bilevel.CompetitiveGradient(1, tolerance=1e-30),
    "competitive gradient, 5 iterations": lambda: bilevel.CompetitiveGradient(5, tolerance=1e-30),
}


@dataclass
class Args:
    """Time Bilevel.step under each schedule, for players of several widths."""

    rounds: int = 15
    widths: tuple[int, ...] = (64, 512)
    out: Path = Path("runs/network_games")
    device: str = "auto"
    smoke: bool = False
    """Two rounds."""


class Critic(bilevel.FollowerProblem):
    """max over the critic's weights of E D(x) − E D(G(z))."""

    sense = "max"

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def init(self, batch: tuple[Tensor, Tensor]) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def objective(
        self, leader: bilevel.ZeroSum, y: dict[str, Tensor], batch: tuple[Tensor, Tensor]
    ) -> Tensor:
        noise, real = batch
        scores = (functional_call(self.network, y, x) for x in (real, leader.model(noise)))
        return next(scores).mean() - next(scores).mean()


def main(args: Args) -> None:
    """Measures, prints the table and writes the results."""
    count("rounds", args.rounds)
    count("number of widths", len(args.widths))
    for width in args.widths:
        count("width", width)
    device = experiment.pick_device(args.device)
    claim(args.out)
    if args.smoke:
        args.rounds = 2
    records = [one for width in args.widths for one in measure(width, args.rounds, device)]
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    print(minmax.network_games(records))


def measure(width: int, rounds: int, device: torch.device) -> list[dict[str, str | float]]:
    """Medians of a step under each schedule, and of its ratio to a simultaneous one."""
    batch = torch.randn(BATCH, NOISE, device=device), torch.randn(BATCH, DATA, device=device)
    turns: dict[str, Turn] = {}
    for name, schedule in MAKERS.items():
        game = make(width, schedule(), device)
        turns[name] = lambda game=game: game.step(batch)  # type: ignore[misc]
    interleaved(turns, range(2), device)
    seconds = interleaved(turns, track(range(rounds), f"width {width}"), device)
    return [
        {
            "width": width,
            "schedule": name,
            "ms": 1e3 * median(times),
            "÷ simultaneous": median(ratios(times, seconds["simultaneous"])),
        }
        for name, times in seconds.items()
    ]


def make(width: int, schedule: bilevel.Schedule, device: torch.device) -> bilevel.Bilevel:
    """A game of two networks."""
    follower = Critic(network(DATA, width, 1).to(device))
    leader = bilevel.ZeroSum(network(NOISE, width, DATA).to(device), follower)
    solver = bilevel.Parametric(follower.network)
    return bilevel.Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=1e-3),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=1e-3),
        schedule=schedule,
    )


def network(inputs: int, width: int, outputs: int) -> nn.Module:
    """Three layers."""
    layers = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


if __name__ == "__main__":
    commandline.run(main, Args)
