"""How strong a learned attack is: the accuracy that it leaves, beside PGM of few steps.

    OMP_NUM_THREADS=1 python applications/benchmarks/attack_strength.py --precision float32

Classifiers are trained by learned and hand-designed attackers of several numbers of steps. Then
each attacker attacks the classifier that was trained by it, and the one that PGM of ten steps has
trained, which no learned attacker has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from seeded import studies
from tabulated import adversarial
from tabulated.adversarial import HAND_DESIGNED, STEPPED

from bilevel import Bilevel, experiment
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.robustness import ImageSet, accuracy
from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.study import Study


@dataclass
class Args(TrainingArguments):
    """Train by learned and hand-designed attackers, and let them attack the same classifier."""

    seeds: int = 5
    """Number of seeds, from --seed on."""
    out: Path = Path("runs/attack_strength")


def main(args: Args) -> None:
    """Trains, attacks, prints the table and writes the results."""
    if args.smoke:
        args.seeds = 1
    count("seeds", args.seeds)
    records = []
    for study in studies(args, STEPPED, args.seeds):
        games = {method: trained(study, method) for method in STEPPED}
        records += [{"seed": study.args.seed, **one} for one in attacked(games, study.data.test)]
    environment = experiment.environment(study.device)
    experiment.write_results(args.out, asdict(args), environment, records)
    print(adversarial.attack_strength(records))


def trained(study: Study, method: str) -> Bilevel:
    """The game of a method, played to its end."""
    about = study.about(method)
    game = study.game(about)
    study.run(method, about, game)
    return game


def attacked(games: Mapping[str, Bilevel], images: ImageSet) -> list[dict[str, Any]]:
    """The accuracy that each attacker leaves."""
    ten = games[HAND_DESIGNED[10]].leader.model
    return [
        {
            "method": method,
            "own": accuracy(game.leader.model, images, game.follower, game.solver),
            "pgm": accuracy(ten, images, game.follower, game.solver),
        }
        for method, game in games.items()
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    commandline.run(main, Args)
