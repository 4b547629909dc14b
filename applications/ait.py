"""Adversarial interpolation training: a bilevel game that is not zero-sum.

    python applications/ait.py                                      # digits, two minutes
    python applications/ait.py --dataset cifar10 --data-dir data --method ait grad-l2l

The follower moves each image's features toward those of another image; the leader learns to
predict that the result is not of that image's class (Algorithms 2 and 4 of Jiang et al., "Learning
to Defend by Learning to Attack", AISTATS 2021). ``label-smoothing`` is the control: the same labels
on unperturbed images. PGM (PGD) overestimates the robustness of these classifiers;
``applications/robust_eval.py`` measures by how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import nn

from bilevel import Detached
from bilevel.arguments import choices
from bilevel.errors import raise_unknown
from bilevel.experiment import commandline
from bilevel.problem import Sense
from bilevel.robustness import InterpolatedLabels, check_method, make_game
from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.study import Study

SOLVERS = {"ait": "fgsm", "label-smoothing": "plain"}
"""Methods with other names here than in adv_training.py."""


@dataclass
class Args(TrainingArguments):
    """Train classifiers by adversarial interpolation and compare them in one table."""

    method: tuple[str, ...] = ("label-smoothing", "ait", "grad-l2l", "two-step-l2l")
    """label-smoothing, ait (one sign-gradient step), grad-l2l, two-step-l2l, or another method of
    adv_training.py as the follower's solver."""
    epsilon_y: float = 0.5
    """How far a label moves away from the partner's class, from 0 to 1."""
    layer: str = "trunk"
    """Module of the classifier whose pooled outputs are the features."""
    pairing: Literal["reversed", "next", "other-class"] = "reversed"
    """How partners are chosen in a shuffled batch; the original method uses reversed."""
    sense: Sense = "min"
    """min moves toward the partner, as the authors' code does; max is the sign printed in the
    paper."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/ait")
    """Results, checkpoints, weights, figure and TensorBoard logs; replaced without --resume."""


def main(args: Args) -> None:
    """Trains and attacks every method, then prints the table and writes the results."""
    known = (name if name in SOLVERS else check_method(name) for name in args.method)
    args.method = choices("method", known)
    study = Study(args, args.method)
    for name in args.method:
        settings = {"layer": args.layer, "pairing": args.pairing, "sense": args.sense}
        if name == "label-smoothing":
            settings["start"] = 0.0
        about = study.about(SOLVERS.get(name, name), interpolation=settings)
        model, solver = study.networks(about)
        check_layer(model, args.layer)
        follower = about.follower()
        leader = InterpolatedLabels(model, follower, epsilon_y=args.epsilon_y)
        # Not zero-sum: the leader holds x̃ constant because Algorithms 2 and 4 do.
        game = make_game(leader, follower, solver, study.recipe, adjoint=Detached())
        study.run(name, about, game, {**settings, "epsilon_y": args.epsilon_y})
    study.close()


def check_layer(model: nn.Module, layer: str) -> None:
    """Checks that the classifier has the module whose outputs are the features."""
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        first = ", ".join(name for name, _ in model.named_children())
        raise_unknown("layer", layer, names, f"choose from {first}, or a module within one")


if __name__ == "__main__":
    commandline.run(main, Args, joins=True)
