"""What a training step costs: multiply–adds counted, seconds measured against PGM-10.

    python applications/benchmarks/step_cost.py --batch-size 4 --rounds 4

Multiply–adds are counted on the meta device, for the paper's networks, in forward passes of the
classifier (F) and of the attacker (G). Seconds are measured with the methods taking turns, so that
a busy machine slows all alike; the figure is the median over the rounds of the ratio to PGM-10. A
two-step game written by hand takes its turn too: what `Bilevel` adds to it is the price of the
library.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from bilevel import Alternating, Bilevel, Simultaneous, ZeroSum, commandline, experiment
from bilevel.robustness import Attacker, Batch, Linf, Recipe, build_model, make_game, make_solver

METHODS = {
    "plain": "3F",
    "fgsm": "5F",
    "pgm": "23F",
    "naive-l2l": "3F + 3G",
    "grad-l2l": "5F + 3G",
    "two-step-l2l": "7F + 6G",
}
"""The methods and what Algorithm 3 costs, a backward pass to the weights as two forward passes."""

SCHEDULES = {"simultaneous": Simultaneous, "alternating": Alternating}


@dataclass
class Args:
    """Count and time a training step of every method."""

    model: str = "wrn-34-10"
    """The classifier that is timed; multiply–adds are counted for it too."""
    attacker_width: int = 64
    """64 beside WRN-34-10 gives the paper's G/F of about 0.27."""
    channels: int = 3
    image_size: int = 32
    batch_size: int = 8
    rounds: int = 5
    """Times that each method takes its turn."""
    out: Path = Path("runs/step_cost")
    device: str = "auto"
    seed: int = 0
    smoke: bool = False
    """Seconds instead of minutes: a small classifier, two rounds."""


def main(args: Args) -> None:
    """Counts, measures, prints the table and writes the results."""
    if args.smoke:
        args.model, args.attacker_width, args.rounds = "wrn-10-1", 3, 2
    device = experiment.pick_device(args.device)
    torch.manual_seed(args.seed)
    counted = {
        (method, schedule): count(args, method, schedule)
        for method in METHODS
        for schedule in SCHEDULES
    }
    seconds = measure(args, device)
    records: list[dict[str, Any]] = []
    for (method, schedule), passes in counted.items():
        times = seconds[f"{method}, {schedule}"]
        records.append(
            {
                "method": method,
                "schedule": schedule,
                "expected": METHODS[method] if schedule == "simultaneous" else None,
                **passes,
                "seconds": median(times),
                **spread("ratio_to_pgm", ratios(times, seconds["pgm, simultaneous"])),
            }
        )
    overhead = ratios(seconds["two-step-l2l, simultaneous"], seconds["two steps by hand"])
    records.append({"method": "Bilevel ÷ by hand", **spread("ratio", overhead)})
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    print_table(args, records)


def make(args: Args, method: str, schedule: str, device: torch.device) -> tuple[Bilevel, Batch]:
    """A game of that method, in training mode, and a batch of noise for it."""
    recipe = Recipe(model=args.model)
    with device:
        model = build_model(args.model, channels=args.channels, classes=10)
        solver = make_solver(
            method,
            eps=recipe.epsilon,
            channels=args.channels,
            attacker=Attacker("wide", args.attacker_width),
        )
        for network in (model, solver):
            network.to(memory_format=torch.channels_last)
        size = (args.batch_size, args.channels, args.image_size, args.image_size)
        batch = Batch(torch.rand(size), torch.randint(10, (args.batch_size,)))
    follower = Linf(recipe.epsilon)
    leader = ZeroSum(model, follower)
    return make_game(leader, follower, solver, recipe, schedule=SCHEDULES[schedule]()), batch


def count(args: Args, method: str, schedule: str) -> dict[str, float]:
    """Multiply–adds of a step, and of a forward pass of each network, an image."""
    meta = torch.device("meta")
    game, batch = make(args, method, schedule, meta)
    learned, _ = make(args, "grad-l2l", schedule, meta)
    passes: dict[str, Callable[[], Any]] = {
        "classifier_forward": lambda: game.leader.model(batch.x),
        "attacker_forward": lambda: learned.solver.update(batch.x, batch.x, batch.x, None),
        "step": lambda: game.step(batch),
    }
    counts = {}
    for name, run in passes.items():
        with FlopCounterMode(display=False) as counter:
            run()
        counts[name] = counter.get_total_flops() / 2 / args.batch_size
    classifier, step = counts["classifier_forward"], counts["step"]
    return {**counts, "step_in_classifier_forwards": step / classifier}


def measure(args: Args, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a step in each round, the methods taking turns."""
    turns: dict[str, Callable[[], Any]] = {}
    for schedule in SCHEDULES:
        for method in METHODS:
            game, batch = make(args, method, schedule, device)
            turns[f"{method}, {schedule}"] = lambda game=game, batch=batch: game.step(batch)
    game, batch = make(args, "two-step-l2l", "simultaneous", device)
    turns["two steps by hand"] = lambda: two_steps_by_hand(game, batch)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for step in turns.values():  # allocations and the first choice of algorithms are not timed
        step()
    for _ in track(range(args.rounds), "rounds"):
        for name, step in turns.items():
            seconds[name].append(timed(step, device))
    return seconds


def two_steps_by_hand(game: Bilevel, batch: Batch) -> None:
    """2-Step L2L training as one writes it without the library, with the game's own parts."""
    model, attacker, eps = game.leader.model, game.solver.update, game.follower.eps
    model.eval().requires_grad_(False)
    delta = torch.zeros_like(batch.x)
    for _ in range(2):
        point = delta.detach().requires_grad_()
        loss = F.cross_entropy(model(batch.x + point), batch.y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        delta, _ = attacker(delta, gradient, batch.x + delta, None)
        delta = (batch.x + delta.clamp(-eps, eps)).clamp(0, 1) - batch.x
    model.train().requires_grad_(True)
    game.leader_opt.zero_grad()
    game.solver_opt.zero_grad()
    F.cross_entropy(model(batch.x + delta), batch.y).backward()
    for parameter in attacker.parameters():
        parameter.grad.neg_()
    game.leader_opt.step()
    game.solver_opt.step()


def timed(step: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of a step, the device's work included."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    begun = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - begun


def ratios(times: list[float], others: list[float]) -> list[float]:
    """Round by round, so that what slowed a round slowed both sides."""
    return [mine / theirs for mine, theirs in zip(times, others, strict=True)]


def median(values: list[float]) -> float:
    """The middle value."""
    return float(torch.tensor(values).median())


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, least and greatest value."""
    return {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def print_table(args: Args, records: list[dict[str, Any]]) -> None:
    """Counted and measured cost, a method a row."""
    forward, attacker = records[0]["classifier_forward"], records[0]["attacker_forward"]
    table = Table(
        title=f"{args.model}: F = {forward / 1e9:.3g} G multiply–adds an image, "
        f"G/F = {attacker / forward:.3f}, batch {args.batch_size}"
    )
    for title in ("method", "schedule", "should cost", "counted (F)", "s/step", "÷ PGM-10"):
        table.add_column(title)
    for record in records[:-1]:
        table.add_row(
            record["method"],
            record["schedule"],
            record["expected"] or "",
            f"{record['step_in_classifier_forwards']:.2f}",
            f"{record['seconds']:.3f}",
            f"{record['ratio_to_pgm']:.3f}",
        )
    console = Console()
    console.print(table)
    last = records[-1]
    console.print(
        f"{last['method']}: {last['ratio']:.3f} "
        f"({last['ratio_min']:.3f} to {last['ratio_max']:.3f})"
    )


if __name__ == "__main__":
    commandline.run(main, Args)
