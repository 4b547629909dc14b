"""Adversarial training with hand-designed and learned attackers, compared in one table.

    python applications/adv_training.py                                     # digits, two minutes
    python applications/adv_training.py --dataset cifar10 --data-dir data --method pgm two-step-l2l
    python applications/adv_training.py --dataset folder --data-dir photos --model resnet18
    python applications/adv_training.py --norm l2 --epsilon 0.7

For each method a classifier is trained against the method's follower (Algorithm 3 of Jiang et al.,
"Learning to Defend by Learning to Attack", AISTATS 2021), the epoch with the best validation
accuracy is kept, and the test set is attacked with PGM-20, PGM-100 (PGM is the paper's name for
PGD) and the method's own attacker. ``applications/robust_eval.py`` evaluates the classifiers with
a battery of attacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bilevel.alias import SCHEDULES, ScheduleName
from bilevel.arguments import choices
from bilevel.errors import BilevelError
from bilevel.experiment import commandline
from bilevel.robustness import Norm, check_method, is_learned
from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.study import Study


@dataclass
class Args(TrainingArguments):
    """Train robust classifiers by several methods and compare them in one table.

    Arguments not given default to the dataset's recipe: the paper's for CIFAR, a small one for
    digits.
    """

    method: tuple[str, ...] = ("plain", "pgm", "grad-l2l", "two-step-l2l")
    """plain, fgsm, pgm (PGD, ten steps), naive-l2l, grad-l2l, two-step-l2l, grad-only-l2l,
    two-step-grad-only-l2l, or K-step-pgm or K-step-l2l for any K; several are trained one after
    the other."""
    norm: Norm = "linf"
    """The norm of the perturbations; l2 and l1 need an --epsilon, since those of the recipes are
    for linf as in the paper. For CIFAR-10 0.5 and 12 are usual."""
    warm_start: bool = False
    """Start the attack on each image where the last one on it has ended: a few steps then come as
    far as many (ATTA; Zheng et al., 2020). Takes two bytes of memory for each value of the
    training images."""
    schedule: ScheduleName = "simultaneous"
    """One pass for both networks (simultaneous), one for each as in the authors' code
    (alternating), or a schedule for games that cycle, at up to five times the cost."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/adv_training")
    """Results, checkpoints, weights, figure and TensorBoard logs; replaced without --resume."""


def main(args: Args) -> None:
    """Trains and attacks every method, then prints the table and writes the results."""
    check_methods(args)
    if args.norm != "linf" and args.epsilon is None:
        raise BilevelError(
            f"norm is {args.norm} and there is no epsilon: those of the recipes are for linf; give "
            "--epsilon, 0.5 in l2 or 12 in l1 for CIFAR-10"
        )
    study = Study(args, args.method)
    for method in args.method:
        about = study.about(method)
        game = study.game(about, schedule=SCHEDULES[args.schedule]())
        study.run(method, about, game, {"schedule": args.schedule})
    study.close()


def check_methods(args: Args) -> None:
    """Checks that there are such methods, and that they use what is given for them."""
    args.method = choices("method", map(check_method, args.method))
    # What else describes the attacker is kept with every classifier, for the attack fresh.
    if args.attacker_lr is not None and not any(map(is_learned, args.method)):
        raise BilevelError(
            f"attacker_lr is {args.attacker_lr} and --method is {' '.join(args.method)}: only "
            "methods with l2l take it; add two-step-l2l, or leave out --attacker-lr"
        )
    if args.warm_start and set(args.method) == {"plain"}:
        raise BilevelError(
            "warm_start is given and --method is plain, which attacks no image: add two-step-pgm, "
            "or leave out --warm-start"
        )


if __name__ == "__main__":
    commandline.run(main, Args, joins=True)
