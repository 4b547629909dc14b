"""How robust is a classifier really? Attacks it with all that is known and says whom to believe.

    python applications/robust_eval.py runs/adv_training/pgm
    python applications/robust_eval.py runs/adv_training/* --surrogate runs/other/pgm --restarts 5

Each image is attacked until something breaks it; what is left is the worst case. A checklist after
Athalye et al. (2018) and Carlini et al. (2019), Appendix D of the paper, decides whether that
figure can be trusted. ``report.html`` is the page to read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from bilevel import (
    BilevelError,
    Solver,
    checkpoint,
    commandline,
    distributed,
    experiment,
    fgsm,
    pgm,
)
from bilevel.robustness import (
    EVALUATION_STEP,
    STANDARD,
    Arsenal,
    Battery,
    Curve,
    Dataset,
    Evaluation,
    Example,
    ImageSet,
    Linf,
    Perturbation,
    Splits,
    Trained,
    accuracy_by_epsilon,
    accuracy_by_iterations,
    batches,
    check_attack,
    check_classifier,
    checksum,
    examples,
    headline,
    judge,
    load_images,
    load_trained,
    make_attacks,
    probe,
    records,
    sample,
    write_report,
)


@dataclass
class Args:
    """Attack trained classifiers with everything and report what is left, and whom to believe."""

    checkpoint: tyro.conf.Positional[tuple[str, ...]]
    """Folders with a classifier.safetensors that a training application wrote; NAME=FOLDER names
    one in the report."""
    attack: tuple[str, ...] = STANDARD
    """In this order: fgsm, pgm-K, pgm-K-margin, pgm-K-dlr, apgd-ce, apgd-dlr, apgd-t, cw, random,
    own, fresh, transfer, square, autoattack."""
    surrogate: tuple[str, ...] = ()
    """Likewise: classifiers whose adversarial images are tried on the others (transfer)."""
    epsilon: float | None = None
    """Radius of the L-infinity ball; what the classifier was trained for unless given."""
    start: float = 1e-4
    """Radius of PGM's random start."""
    restarts: int = 1
    """Random starts of PGM and APGD; the worst counts. The paper takes 5."""
    points: int = 300
    """Random points a sample; the paper's table has 100000."""
    fresh: str = "grad-l2l"
    """The method of the attacker that is trained afresh."""
    fresh_steps: int = 300
    alone: tuple[str, ...] = ()
    """Attacks that are run on every image, and not only on what others have left, for their own
    figure; slower. fgsm, pgm-K, own and transfer always are."""
    curves: bool = True
    """Measure accuracy against ε and against iterations; the verdict asks for both."""
    curve_size: int = 200
    """Images that the curves are measured on."""

    dataset: Dataset | None = None
    """What the classifiers were trained on unless given."""
    data_dir: Path = Path("data")
    test_size: int | None = 1000
    """Attack this many test images only."""
    batch_size: int = 256
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/robust_eval")
    """Report, results and state; replaced without --resume."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds, on few images."""
    resume: bool = False
    """Go on where a stopped run with the same arguments ended."""

    def __post_init__(self) -> None:
        """Few of everything for a trial."""
        if self.smoke:
            self.test_size = self.curve_size = 16
            self.points, self.fresh_steps = 20, 5


def main(args: Args) -> None:
    """Evaluates every classifier, then writes the report and prints what is left of each."""
    targets, surrogates, data = prepare(args)
    report(
        args, targets, [evaluate(args, one, surrogates, data[one.name]) for one in targets], data
    )


def prepare(args: Args) -> tuple[list[Trained], list[Trained], dict[str, Splits]]:
    """The classifiers, the surrogates and the images; all that is wrong with them is told here."""
    for name in args.attack:
        check_attack(name)
    distributed.agree({**asdict(args), "code": experiment.code()})
    device = experiment.pick_device(args.device)
    targets, surrogates = (load(names, device) for names in (args.checkpoint, args.surrogate))
    if not targets:
        raise BilevelError(
            "no checkpoint is given: there is nothing to attack; name the folder of a trained "
            "classifier, such as runs/adv_training/pgm"
        )
    data = {target.name: images(args, target, device) for target in targets}
    for target in targets:
        check_classifier(target.model, data[target.name].test)
    return targets, surrogates, data


def report(
    args: Args, targets: list[Trained], evaluations: list[Evaluation], data: dict[str, Splits]
) -> None:
    """The page, the results and a table."""
    if not distributed.is_first():
        return
    environment = experiment.environment(experiment.pick_device(args.device))
    rows = [record for evaluation in evaluations for record in records(evaluation)]
    experiment.write_results(args.out, asdict(args), environment, rows)
    pictures = {
        target.name: picture(target, evaluation.eps, data[target.name].test)
        for target, evaluation in zip(targets, evaluations, strict=True)
    }
    datasets = ", ".join(dict.fromkeys(target.about.dataset for target in targets))
    write_report(args.out, evaluations, pictures, {"dataset": datasets, **environment})
    print_table(evaluations)
    Console().print(f"the report is {args.out / 'report.html'}")


def load(names: tuple[str, ...], device: torch.device) -> list[Trained]:
    """The classifiers, on the device; those without a name have their folder's."""
    trained = []
    for given in names:
        name, _, path = given.rpartition("=")
        one = load_trained(Path(path), name or None)
        for network in (one.model, one.solver):
            if network is not None:
                network.to(device).to(memory_format=torch.channels_last)
        trained.append(one)
    found = [one.name for one in trained]
    if len(set(found)) < len(found):
        raise BilevelError(
            f"two classifiers have one name ({', '.join(found)}): a report could not tell them "
            "apart; give NAME=FOLDER"
        )
    return trained


def images(args: Args, target: Trained, device: torch.device) -> Splits:
    """The images that a classifier is attacked on, and those that a fresh attacker learns from."""
    dataset = args.dataset or target.about.dataset
    data = read(dataset, args.data_dir, target.about.seed, device)
    shape = (data.test.images.shape[1], len(data.test.classes))
    if shape != (target.about.channels, target.about.classes):
        raise BilevelError(
            f"{target.name} takes {target.about.channels} channels to {target.about.classes} "
            f"classes, {dataset} has {shape[0]} and {shape[1]}: name the data that it was trained "
            "on with --dataset and --data-dir"
        )
    return data._replace(test=sample(data.test, args.test_size))


@lru_cache(maxsize=1)
def read(dataset: Dataset, data_dir: Path, seed: int, device: torch.device) -> Splits:
    """The images of a dataset, read once for all classifiers that were trained on them."""
    with distributed.one_first():
        data = load_images(dataset, data_dir, seed=seed)
    distributed.agree({"images": checksum(data)})
    return Splits(*(part.to(device) for part in data))


def evaluate(args: Args, target: Trained, surrogates: list[Trained], data: Splits) -> Evaluation:
    """One classifier: looked at, attacked with everything, measured, judged."""
    eps = target.about.epsilon if args.epsilon is None else args.epsilon
    arsenal = Arsenal(
        target,
        eps,
        start=args.start,
        restarts=args.restarts,
        points=args.points,
        surrogates=surrogates,
        fresh=args.fresh,
        fresh_steps=args.fresh_steps,
        train=data.train,
        alone=args.alone,
        seed=args.seed,
    )
    folder = args.out / target.name
    torch.manual_seed(args.seed)
    probed = probe(target.model, data.test)
    with experiment.ProgressBar(target.name) as bar:
        battery = Battery(
            make_attacks(args.attack, arsenal),
            eps=eps,
            seed=args.seed,
            batch_size=args.batch_size,
            path=folder / "battery.pt",
            report=bar.show,
        )
        right, outcomes = battery.run(target.model, data.test, resume=args.resume)
        curves = measure(args, target, eps, data.test, folder / "curves.pt", bar.show)
    evaluation = Evaluation(target.name, eps, target.about.epsilon, right, outcomes, curves)
    evaluation = replace(evaluation, findings=judge(evaluation, probed))
    print(f"{target.name}: {headline(evaluation)}")
    return evaluation


def measure(
    args: Args,
    target: Trained,
    eps: float,
    test: ImageSet,
    path: Path,
    show: Callable[[str, float, float], None],
) -> tuple[Curve, ...]:
    """Accuracy against ε and against iterations, measured once."""
    if not args.curves:
        return ()
    chosen = sample(test, args.curve_size)
    kept = checkpoint.load(path) if args.resume and path.exists() else {}
    if kept.get("images") == len(chosen):  # all else is the battery's too, which has checked it
        return tuple(Curve(**curve) for curve in kept["curves"])
    curves = []
    for name, curve in (
        ("accuracy against ε", accuracy_by_epsilon),
        ("accuracy against iterations", accuracy_by_iterations),
    ):
        curves.append(curve(target.model, chosen, eps, report=partial(show, name)))
    checkpoint.save(path, {"images": len(chosen), "curves": [asdict(curve) for curve in curves]})
    return tuple(curves)


def picture(target: Trained, eps: float, test: ImageSet) -> list[Example]:
    """Figures 4 and 5: what attacks make of three images, the method's own among them."""
    shown = next(batches(sample(test, 3), 3))
    attacks: dict[str, tuple[Perturbation, Solver]] = {
        "FGSM": (Linf(eps), fgsm(eps)),
        "PGM-20": (Linf(eps), pgm(EVALUATION_STEP * eps, 20)),
    }
    if target.about.method != "plain":
        own = target.solver or target.about.solver().to(shown.x.device)
        attacks[f"own {target.about.method}"] = (target.about.follower(eps), own)
    return [
        example
        for title, (follower, solver) in attacks.items()
        for example in examples(title, target.model, follower, solver, shown, test.classes)
    ]


def print_table(evaluations: list[Evaluation]) -> None:
    """What is left of every classifier."""
    table = Table(title="accuracy in per cent")
    for title in ("classifier", "clean", "PGM-20", "worst case", "trustworthy"):
        table.add_column(title, justify="left" if title == "classifier" else "right")
    for one in evaluations:
        pgm20 = one.outcome("PGM-20")
        alone = one.alone(pgm20) if pgm20 else None
        figures = (one.clean, alone, one.worst_case)
        cells = ("–" if figure is None else f"{100 * figure:.1f}" for figure in figures)
        table.add_row(one.name, *cells, "yes" if one.trustworthy else "no")
    Console().print(table)


if __name__ == "__main__":
    commandline.run(main, Args)
