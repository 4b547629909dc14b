"""Robust evaluation: a battery of attacks, and a verdict on whether its result can be trusted.

    python applications/robust_eval.py runs/adv_training/pgm
    python applications/robust_eval.py runs/adv_training/*/ --surrogate runs/other/pgm --restarts 5
    python applications/robust_eval.py models:resnet --dataset cifar10 --epsilon 0.031

Each image is attacked until an attack breaks it; the share of unbroken images is the worst-case
accuracy. A checklist after Athalye et al. (2018) and Carlini et al. (2019), Appendix D of the
paper, decides whether it can be trusted. The report is ``report.html``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from robust_eval_lib.curves import measure_curves
from robust_eval_lib.inputs import Source, check_surrogates, images_of, load
from robust_eval_lib.pictures import attacked

from bilevel import BilevelError, distributed, experiment
from bilevel.arguments import choices, count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim, remove
from bilevel.experiment.tables import Table, cell
from bilevel.fingerprint import fingerprint
from bilevel.robustness import (
    EVALUATION_START,
    STANDARD,
    AttackSettings,
    Battery,
    Curve,
    Dataset,
    Evaluation,
    Norm,
    Splits,
    Trained,
    check_attack,
    check_classifier,
    headline,
    judge,
    make_attacks,
    probe,
    records,
    sample,
    write_report,
)
from bilevel.robustness.studies.arguments import Radius, at_most


@dataclass
class Args:
    """Attack trained classifiers with a battery of attacks, and judge the result."""

    checkpoint: tyro.conf.Positional[tuple[str, ...]]
    """Folders with a classifier.safetensors written by a training application, or MODULE:FUNCTION
    for one of your own: the function returns a network from images in [0, 1] to logits. NAME=FOLDER
    sets the name in the report."""
    allow_import: bool = False
    """Import the module that a classifier.safetensors names, of a network of your own (--model
    MODULE:FUNCTION in training)."""
    attack: tuple[str, ...] = STANDARD
    """Run in the order given: fgsm, pgm-K, pgm-K-margin, pgm-K-dlr, apgd-ce, apgd-dlr, apgd-t,
    longer (a spot check: 300 steps), cw (linf only), random, square, own, fresh, transfer,
    autoattack (of the package pyautoattack)."""
    surrogate: tuple[str, ...] = ()
    """Folders of classifiers whose adversarial images are tried on the others (transfer)."""
    norm: Norm | None = None
    """The norm of the perturbations; by default the one the classifier was trained for."""
    epsilon: Radius | None = None
    """Radius of the threat model, such as 8/255; by default the one of the training."""
    start: float = EVALUATION_START
    """Radius of PGM's random start."""
    restarts: int = 1
    """Random starts of PGM and APGD; the worst counts. 5 in the paper. No effect on apgd-t, which
    runs once for each target."""
    points: int = 100
    """Random points per sample; 100000 in the paper's table."""
    queries: int = 300
    """Queries per image of the Square Attack; 5000 in AutoAttack."""
    fresh: str = "grad-l2l"
    """The method of the attacker that the fresh attack trains."""
    fresh_steps: int = 300
    """Training steps of the fresh attacker."""
    alone: tuple[str, ...] = ()
    """Attacks of --attack to run on all images, not only on those that no earlier attack has
    broken, so that they have an accuracy of their own; slower. fgsm, pgm-K, own and transfer always
    do."""
    curves: bool = True
    """Measure accuracy against ε and against iterations; the verdict needs both."""
    curve_size: int = 200
    """Number of images for the curves."""

    dataset: Dataset | None = None
    """By default the one the classifiers were trained on."""
    data_dir: Path = Path("data")
    """Where the images are."""
    image_size: int | None = None
    """Scale and crop the images of a folder to this height and width; by default as in training."""
    test_size: int | None = 1000
    """Attack this many test images only."""
    batch_size: int = 256
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/robust_eval")
    """Report, results and state; replaced without --resume."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds: at most 16 images, 20 points and queries, 5 fresh steps."""
    resume: bool = False
    """Continue a stopped run with the same arguments."""

    def __post_init__(self) -> None:
        """The sizes of a smoke run."""
        if self.smoke:
            self.test_size = at_most(16, self.test_size)
            self.curve_size = min(16, self.curve_size)
            self.points, self.queries = min(20, self.points), min(20, self.queries)
            self.fresh_steps = min(5, self.fresh_steps)


def main(args: Args) -> None:
    """Evaluates every classifier, then writes the report and prints the table."""
    args = replace(args, resume=args.resume or distributed.restarted())
    targets, surrogates, data = prepare(args)
    if distributed.is_main() and not args.resume:
        remove_states(args.out, targets)
    report(
        args, targets, [evaluate(args, one, surrogates, data[one.name]) for one in targets], data
    )


def remove_states(out: Path, targets: list[Trained]) -> None:
    """Of all classifiers at once: a stopped run leaves no earlier figures to go on from."""
    states = (out / one.name / file for one in targets for file in ("battery.pt", "curves.pt"))
    remove(*states)


def prepare(args: Args) -> tuple[list[Trained], list[Trained], dict[str, Splits]]:
    """Loads and checks the classifiers, the surrogates and the images."""
    check_attacks(args)
    count("seed", args.seed, least=0)
    count("curve_size", args.curve_size)
    distributed.check_consistent({**asdict(args), "code": experiment.code()})
    device = experiment.pick_device(args.device)
    source = Source(args.dataset, args.data_dir, args.image_size)
    targets, surrogates = (
        load(names, device, source, allow_import=args.allow_import)
        for names in (args.checkpoint, args.surrogate)
    )
    if not targets:
        raise BilevelError(
            "no checkpoint is given: there is nothing to attack; name the folder of a trained "
            "classifier, such as runs/adv_training/pgm, or MODULE:FUNCTION"
        )
    if distributed.is_main():
        claim(args.out)
    networks = [fingerprint(one.model) for one in (*targets, *surrogates)]
    distributed.check_consistent({"classifiers": networks})
    data = {}
    for target in targets:
        found = images_of(target, source, device)
        data[target.name] = found._replace(test=sample(found.test, args.test_size))
        check_surrogates(target, surrogates)
        settings = attack_settings(args, target, surrogates, data[target.name])
        if not make_attacks(args.attack, settings):
            raise BilevelError(
                f"--attack {' '.join(args.attack)} gives no attack on {target.name}: transfer needs"
                " --surrogate, own an attacker that was trained in that norm and for that ε; add "
                "others, such as fgsm and pgm-20"
            )
        check_classifier(target.model, data[target.name].test, batch_size=args.batch_size)
    return targets, surrogates, data


def check_attacks(args: Args) -> None:
    """Checks that there are such attacks, and that they use what is given for them."""
    args.attack = choices("attack", args.attack)
    for name in args.attack:
        check_attack(name)
    for name in args.alone:
        if name not in args.attack:
            raise BilevelError(
                f"{name!r} is in --alone and is not in --attack: it would not be run; choose from "
                f"{', '.join(args.attack)}, or add it to --attack"
            )
    users = {
        "transfer": ("--surrogate", args.surrogate),
        "fresh": ("--fresh", args.fresh != Args.fresh),
    }
    for name, (option, given) in users.items():
        if given and name not in args.attack:
            raise BilevelError(
                f"{option} is given, but {name}, the only attack that uses it, is not in --attack: "
                f"add {name}, or leave out {option}"
            )


def report(
    args: Args, targets: list[Trained], evaluations: list[Evaluation], data: dict[str, Splits]
) -> None:
    """Writes the report and the results, and prints the table."""
    if not distributed.is_main():
        return
    environment = experiment.environment(experiment.pick_device(args.device))
    rows = [record for evaluation in evaluations for record in records(evaluation)]
    experiment.write_results(args.out, asdict(args), environment, rows)
    torch.manual_seed(args.seed)  # else the pictures would depend on where a run was stopped
    pictures = {
        target.name: attacked(target, evaluation, data[target.name].test)
        for target, evaluation in zip(targets, evaluations, strict=True)
    }
    datasets = ", ".join(dict.fromkeys(target.about.dataset for target in targets))
    write_report(args.out, evaluations, pictures, {"dataset": datasets, **environment})
    print_table(evaluations)
    Console().print(f"the report is {args.out / 'report.html'}")


def evaluate(args: Args, target: Trained, surrogates: list[Trained], data: Splits) -> Evaluation:
    """Probes, attacks and judges one classifier, and measures its curves."""
    settings = attack_settings(args, target, surrogates, data)
    folder = args.out / target.name
    torch.manual_seed(args.seed)
    probed = probe(target.model, data.test, batch_size=args.batch_size)
    with experiment.ProgressBar(target.name) as bar:
        battery = Battery(
            make_attacks(args.attack, settings),
            eps=settings.eps,
            norm=settings.norm,
            seed=args.seed,
            batch_size=args.batch_size,
            path=folder / "battery.pt",
            report=bar.show,
        )
        right, outcomes = battery.run(target.model, data.test, resume=args.resume)
        curves: tuple[Curve, ...] = ()
        if args.curves:
            curves = measure_curves(
                target.model,
                sample(data.test, args.curve_size),
                settings,
                batch_size=args.batch_size,
                path=folder / "curves.pt",
                resume=args.resume,
                show=bar.show,
            )
    evaluation = Evaluation(
        target.name,
        settings.eps,
        (target.about.epsilon or None) if settings.norm == target.about.norm else None,
        right,
        outcomes,
        curves,
        norm=settings.norm,
    )
    evaluation = replace(evaluation, findings=judge(evaluation, probed))
    print(f"{target.name}: {headline(evaluation)}")
    return evaluation


def attack_settings(
    args: Args, target: Trained, surrogates: list[Trained], data: Splits
) -> AttackSettings:
    """The settings of the attacks on one classifier, by default in the ball of its training."""
    norm, eps, about = args.norm or target.about.norm, args.epsilon, target.about
    if eps is None and not about.epsilon:
        raise BilevelError(
            f"there is no epsilon, and it is not known what {target.name} was trained for: give "
            "--epsilon, for CIFAR-10 0.031, 0.5 with --norm l2, 12 with l1"
        )
    if eps is None and norm != about.norm:
        raise BilevelError(
            f"norm is {norm} and there is no epsilon: {target.name} was trained for "
            f"{about.epsilon} in {about.norm}, which means something else; give --epsilon"
        )
    return AttackSettings(
        about.epsilon if eps is None else eps,
        about.classes,
        norm=norm,
        start=args.start,
        restarts=args.restarts,
        points=args.points,
        queries=args.queries,
        surrogates={surrogate.name: surrogate.model for surrogate in surrogates},
        trained=target,
        fresh=args.fresh,
        fresh_steps=args.fresh_steps,
        train=data.train,
        alone=args.alone,
        seed=args.seed,
    )


def print_table(evaluations: list[Evaluation]) -> None:
    """Prints a row for each classifier."""
    rows = []
    for one in evaluations:
        pgm20 = one.outcome("PGM-20")
        alone = one.alone(pgm20) if pgm20 else None
        shares = (one.clean, alone, one.worst_case)
        cells = (cell(share and 100 * share, ".1f") for share in shares)
        rows.append([one.name, *cells, "yes" if one.trustworthy else "no"])
    header = "classifier", "clean", "PGM-20", "worst case", "trustworthy"
    Table("accuracy in per cent", header, rows).print()


if __name__ == "__main__":
    commandline.run(main, Args, joins=True)
