r"""Cost of a training step: multiply–adds counted, time measured relative to PGM-10.

    python applications/benchmarks/step_cost.py --batch-size 4 --rounds 4
    python applications/benchmarks/step_cost.py --model wrn-16-2 --attacker-width 8 \
        --batch-size 32 --method pgm two-step-l2l --precision float32 bf16

Multiply–adds are counted on one image, in forward passes of the classifier (F) and of the attacker
(G). Times are measured with all cases interleaved, so that other load slows all equally; a ratio is
the median over rounds of the ratio to PGM-10 in the same precision. Then a two-step game is
compared with one written by hand: the difference is the overhead of `Bilevel`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from suite.ledger import Record
from suite.measuring import measure
from suite.steps import METHODS, Bench, Case, Size
from suite.tables import cost, steps_of
from timing import interleaved, spread

from bilevel import Bilevel, BilevelError, experiment
from bilevel.alias import ScheduleName
from bilevel.arguments import choices, count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim
from bilevel.robustness import Batch, computing


@dataclass
class Args:
    """Count and time a training step of every method."""

    model: str = "wrn-34-10"
    """The classifier whose steps are timed and counted."""
    attacker_width: int = 64
    """64 with WRN-34-10 gives the paper's G/F of about 0.27."""
    method: tuple[str, ...] = tuple(METHODS)
    """Must include pgm, which the others are compared with."""
    schedule: tuple[ScheduleName, ...] = ("simultaneous", "alternating")
    precision: tuple[Literal["float32", "tf32", "bf16"], ...] = ("float32",)
    compile: bool = False
    """Also time each case compiled."""
    channels: int = 3
    image_size: int = 32
    batch_size: int = 8
    rounds: int = 5
    """Interleaved rounds."""
    out: Path = Path("runs/step_cost")
    device: str = "auto"
    seed: int = 0
    smoke: bool = False
    """Seconds instead of minutes: a small classifier, two rounds."""


def main(args: Args) -> None:
    """Counts, measures, prints the table and writes the results."""
    for name in ("attacker_width", "channels", "image_size", "batch_size", "rounds"):
        count(name, getattr(args, name))
    if args.smoke:
        args.model, args.attacker_width, args.rounds = "wrn-10-1", 3, 2
    args.method = choices("method", args.method, METHODS)
    device = experiment.pick_device(args.device)
    claim(args.out)
    torch.manual_seed(args.seed)
    size = Size(args.model, args.attacker_width, args.batch_size, args.channels, args.image_size)
    ways = product(args.precision, (False, True)[: 1 + args.compile], args.schedule, args.method)
    cases = [Case(method, schedule, *how) for *how, schedule, method in ways]
    console = Console()
    with console.status("networks") as status:
        records = measure(size, cases, device, args.rounds, status.update)
        status.update("by hand")
        overhead = {"method": "Bilevel ÷ by hand", **by_hand(size, device, args.rounds)}
    environment = experiment.environment(device)
    experiment.write_results(args.out, asdict(args), environment, [*records, overhead])
    if timed := steps_of(records):
        print(cost(timed))
    print("{method}: {ratio:.3f} ({ratio_min:.3f} to {ratio_max:.3f})".format(**overhead))
    if failed := len(records) - len(timed):
        raise BilevelError(
            f"{failed} measurements failed, for reasons that {args.out}/results.json tells: the "
            "table lacks them; leave out what cannot be timed here"
        )


def by_hand(size: Size, device: torch.device, rounds: int) -> Record:
    """The library's time of a two-step game divided by that of the same written by hand."""
    bench = Bench(size, device)
    game, same = (bench.game(Case("two-step-l2l")) for _ in range(2))
    turns = {
        "bilevel": partial(game.step, bench.batch),
        "by hand": partial(two_steps, same, bench.batch),
    }
    with computing("float32", device, one_size=True):
        interleaved(turns, range(1), device)
        seconds = interleaved(turns, range(rounds), device)
    return spread("ratio", seconds["bilevel"], seconds["by hand"])


def two_steps(game: Bilevel, batch: Batch) -> None:
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


if __name__ == "__main__":
    commandline.run(main, Args)
