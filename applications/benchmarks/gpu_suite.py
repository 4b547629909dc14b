"""The paper's claim at full size: cost and robustness of its methods, on one GPU.

    python applications/benchmarks/gpu_suite.py --data cifar10.npz --out runs/gpu_suite
    python applications/benchmarks/gpu_suite.py                    # without a GPU: small, minutes

(a) a training step of each method with WRN-34-10 and ResNet-18: time, memory, arithmetic; in
float32, TF32 and bf16, eager, compiled and as a CUDA graph, as ``Simultaneous`` and as
``Alternating``, which is how the authors' code runs; (b) classifiers trained by the fast recipe,
and their robust accuracy; (c) the ratios to PGM-10 next to the paper's.

A call ends after ``--minutes``, and the same command continues where it ended. It needs torch,
torchvision and numpy only; images come from an ``.npz`` file or a folder of class folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from suite import tables
from suite.ledger import Clock, Job, Ledger, Record, work
from suite.steps import METHODS, Case, Size, matrix_rate, measure, way
from suite.training import Training

from bilevel import BilevelError, commandline, experiment
from bilevel.files import replacing
from bilevel.robustness import RECIPES, Splits, fast, load_images, sample
from bilevel.robustness.sources import Dataset
from bilevel.robustness.speed import Precision, fitting_precision

Way = tuple[Precision, bool, bool]
"""A precision, whether networks are compiled, and whether a step is one CUDA graph."""

TRAINED = ("two-step-l2l", "pgm", "grad-l2l", "plain")


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        sizes: Whose steps are measured.
        turns: The ways in which they compute; those of a group take turns.
        rounds: Of turns.
        epochs: Of each classifier that is trained; None for the recipe's.
        images: Training, validation and test images; None for all.
        compiled: Whether their networks are.
    """

    sizes: tuple[Size, ...]
    turns: tuple[tuple[Way, ...], ...]
    rounds: int
    epochs: dict[str, int | None]
    images: tuple[int | None, int | None, int | None]
    compiled: bool = False


FULL = Scale(
    sizes=(Size("wrn-34-10", 64, 128), Size("resnet18", None, 128)),
    turns=tuple(
        (how,)
        for how in (
            ("bf16", True, False),
            ("float32", False, False),
            ("bf16", False, False),
            ("bf16", True, True),
            ("tf32", False, False),
            ("tf32", True, False),
            ("float32", True, False),
        )
    ),
    rounds=5,
    epochs={"resnet18": 20, "wrn-34-10": 15},
    images=(None, 500, 2000),
    compiled=True,
)
SMALL = Scale(
    sizes=(Size("wrn-16-2", None, 32),),
    turns=((("float32", False, False), ("bf16", False, False)),),
    rounds=6,
    epochs={"wrn-10-1": 10},
    images=(8000, 500, 1000),
)
DIGITS = replace(SMALL, epochs={"small-cnn": None}, images=(None, None, None))
SMOKE = replace(
    DIGITS,
    sizes=(Size("wrn-10-1", None, 4),),
    turns=((("bf16", False, False),),),
    rounds=1,
    epochs={"small-cnn": 1},
    images=(128, 32, 16),
)


@dataclass
class Args:
    """Measure cost and robustness of learned attackers; each call continues the last."""

    data: Path | None = None
    """CIFAR-10 as an .npz file or a folder of class folders; without it and without a GPU,
    scikit-learn's digits."""
    minutes: float = 8.5
    """Length of a call."""
    epochs: int | None = None
    """Epochs of the training runs, instead of the scale's."""
    test_size: int | None = None
    """Images to attack, instead of the scale's."""
    out: Path = Path("runs/gpu_suite")
    """results.json, tables.md and checkpoints; existing measurements are kept."""
    seed: int = 0
    device: str = "auto"
    smoke: bool = False
    """Try everything in seconds."""


def main(args: Args) -> None:
    """Works through the jobs until the stage is over, then prints what is known."""
    clock = Clock(args.minutes)
    device = experiment.pick_device(args.device)
    scale = fitting_scale(args, device)
    given = {name: value for name, value in asdict(args).items() if name not in ("minutes", "out")}
    environment = experiment.environment(device)
    ledger = Ledger(args.out, given, environment)
    images = load(args, scale, device)  # what is wrong with them is told before minutes are spent
    jobs = planned(args, scale, images, device, clock)
    finished = work(jobs, ledger, clock)
    report = tables.report(ledger.records, environment)
    with replacing(args.out / "tables.md") as part:
        part.write_text(report)
    print(report)
    failed = sum("failed" in record or "reason" in record for record in ledger.records)
    left = sum(not ledger.done(job) for job in jobs)
    if left:
        print(f"{left} of {len(jobs)} parts are to be done, the same command goes on")
    if finished and failed:
        raise BilevelError(
            f"{failed} measurements failed, for reasons that {args.out}/results.json tells: the "
            "tables lack them; mend what is told, and give another --out"
        )


def fitting_scale(args: Args, device: torch.device) -> Scale:
    """What a device can measure on the images given."""
    if args.smoke:
        return SMOKE
    if device.type != "cuda":
        return SMALL if args.data else DIGITS
    if args.data is None:
        raise BilevelError(
            "no images are given: classifiers of this size learn nothing from digits; give --data "
            "FILE.npz or a folder of CIFAR-10's images"
        )
    return FULL


def planned(
    args: Args, scale: Scale, images: Splits, device: torch.device, clock: Clock
) -> list[Job]:
    """The jobs; what matters most comes first, should time run out."""
    steps = [
        Job(
            f"steps of {size.model}, {' and '.join(way(*one) for one in turns)}",
            partial(time_steps, size, turns, scale.rounds, device),
            minutes=room(size.model, device),
        )
        for turns in scale.turns
        for size in scale.sizes
    ]
    runs = [
        [train(args, scale, model, method, images, device, clock) for method in TRAINED]
        for model in scale.epochs
    ]
    first = 2 * len(scale.sizes)
    rates = Job("matrix rates", partial(rate, device))
    later = [job for group in runs[1:] for job in group]
    return [rates, *steps[:first], *runs[0], *steps[first:], *later]


def rate(device: torch.device) -> list[Record]:
    """What the device's matrix units do at best."""
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bf16")
    return [
        {"precision": precision, "flops_per_second": matrix_rate(precision, device)}
        for precision in precisions
        if device.type == "cuda" or precision != "tf32"
    ]


def time_steps(size: Size, turns: Sequence[Way], rounds: int, device: torch.device) -> list[Record]:
    """Every method and both schedules, in some ways that take turns."""
    cases = [
        Case(method, schedule, *how)
        for how in turns
        for schedule in ("simultaneous", "alternating")
        for method in METHODS
    ]
    try:
        return measure(size, cases, device, rounds, lambda case: print(f"  {case}", flush=True))
    finally:
        torch._dynamo.reset()  # what was compiled for these games serves no other
        if device.type == "cuda":
            torch.cuda.empty_cache()


def train(
    args: Args,
    scale: Scale,
    model: str,
    method: str,
    images: Splits,
    device: torch.device,
    clock: Clock,
) -> Job:
    """A training run by the fast recipe."""
    recipe = fast(replace(RECIPES[dataset(args)], model=model))
    given = scale.epochs[model] if args.epochs is None else args.epochs
    epochs = recipe.epochs if given is None else given
    training = Training(
        method,
        replace(recipe, epochs=epochs),
        dataset(args),
        precision=fitting_precision(device),
        compiled=scale.compiled,
        seed=args.seed,
        folder=args.out / model / method,
        attack_minutes=room(model, device),
    )
    return Job(f"training {model}, {method}", lambda: training.run(images, clock))


def room(model: str, device: torch.device) -> float:
    """Minutes of a stage within which what cannot be interrupted must end."""
    if device.type != "cuda":
        return 0.0
    return 5.0 if model.startswith("wrn") else 2.5


def dataset(args: Args) -> Dataset:
    """What the images come from."""
    if args.data is None:
        return "digits"
    return "npz" if args.data.suffix == ".npz" else "folder"


def load(args: Args, scale: Scale, device: torch.device) -> Splits:
    """The images, on the device."""
    splits = load_images(dataset(args), args.data or ".", seed=args.seed)
    train, validation, test = scale.images
    if scale.compiled:  # for each size of batch another time: an epoch has whole ones only
        batch_size = RECIPES[dataset(args)].batch_size
        train = len(splits.train) // batch_size * batch_size
    sizes = train, validation, test if args.test_size is None else args.test_size
    parts = (sample(part, size) for part, size in zip(splits, sizes, strict=True))
    return Splits(*(part.to(device) for part in parts))


if __name__ == "__main__":
    commandline.run(main, Args)
