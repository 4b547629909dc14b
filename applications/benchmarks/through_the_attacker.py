"""Adversarial training where the classifier differentiates through its learned attacker.

    OMP_NUM_THREADS=1 python applications/benchmarks/through_the_attacker.py --precision float32

In the zero-sum game the attack is a constant to the classifier's gradient (Detached), which is
exact for an optimal attack. A learned attack is not optimal: it responds to the gradient that it
reads, and Unrolled differentiates through that response. Both are trained on digits by 2-Step L2L
with the same seeds. The cost of a step is measured separately, interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.progress import track
from seeded import studies
from tabulated import adversarial
from timing import interleaved, ratios

from bilevel import Adjoint, Bilevel, Detached, Unrolled, experiment
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.robustness import About, batches
from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.study import Study

METHOD = "two-step-l2l"
ADJOINTS: dict[str, type[Adjoint]] = {"detached": Detached, "unrolled": Unrolled}


@dataclass
class Args(TrainingArguments):
    """Train with the attack as a constant and through the attacker: accuracy and cost."""

    seeds: int = 3
    """Number of seeds, from --seed on."""
    rounds: int = 40
    """Timed steps of each."""
    out: Path = Path("runs/through_the_attacker")


def main(args: Args) -> None:
    """Trains, measures, prints the table and writes the results."""
    for name in ("seeds", "rounds"):
        count(name, getattr(args, name))
    if args.smoke:
        args.seeds, args.rounds = 1, 2
    records = []
    for study in studies(args, tuple(ADJOINTS), args.seeds):
        for name, about, game in games(study):
            study.run(name, about, game, {"adjoint": name})
        records += study.records
    cost = cost_of_a_step(study, args.rounds)
    records.append({"method": "unrolled ÷ detached, CPU time of a step", "ratio": cost})
    environment = experiment.environment(study.device)
    experiment.write_results(args.out, asdict(args), environment, records)
    print(adversarial.through_the_attacker(records))


def games(study: Study) -> Iterator[tuple[str, About, Bilevel]]:
    """The same game with each adjoint."""
    about = study.about(METHOD)
    for name, adjoint in ADJOINTS.items():
        yield name, about, study.game(about, adjoint=adjoint())


def cost_of_a_step(study: Study, rounds: int) -> float:
    """CPU time with :class:`Unrolled` ÷ that with :class:`Detached`, the median over rounds."""
    batch = next(batches(study.data.train, study.recipe.batch_size))
    turns = {name: partial(game.step, batch) for name, _, game in games(study)}
    interleaved(turns, range(1))
    rounds_shown = track(range(rounds), "cost of a step")
    seconds = interleaved(turns, rounds_shown, clock=time.process_time)
    return median(ratios(seconds["unrolled"], seconds["detached"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    commandline.run(main, Args)
