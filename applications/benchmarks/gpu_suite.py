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

import argparse
import gc
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from suite import plan, tables
from suite.ledger import Clock, Job, Ledger, Record, work
from suite.measuring import matrix_rate, measure
from suite.plan import Run, Scale, Timing
from suite.steps import METHODS, Case, way
from suite.training import Training

from bilevel import BilevelError, experiment
from bilevel.experiment import commandline
from bilevel.experiment.files import atomic_write, claim
from bilevel.robustness import RECIPES, Splits, fast, load_images, sample
from bilevel.robustness.data.sources import Dataset
from bilevel.robustness.networks.precision import Precision, default_precision


@dataclass
class Args:
    """Measure cost and robustness of learned attackers; each call continues the last."""

    data: Path | None = None
    minutes: float = 8.5
    epochs: int | None = None
    test_size: int | None = None
    out: Path = Path("runs/gpu_suite")
    seed: int = 0
    device: str = "auto"
    smoke: bool = False


def read_arguments(arguments: type[Args]) -> Args:
    """Parses the command line without tyro, which the machine may lack."""
    parser = argparse.ArgumentParser(
        description=arguments.__doc__,
        usage=argparse.SUPPRESS,  # so errors are one line
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    images = "CIFAR-10 as an .npz file or a folder of class folders; small runs may use digits"
    add("--data", type=Path, help=images)
    add("--minutes", type=float, help="length of a call")
    add("--epochs", type=int, help="epochs of the training runs, instead of the scale's")
    add("--test-size", type=int, help="images to attack, instead of the scale's")
    add("--out", type=Path, help="results, tables and checkpoints; existing measurements are kept")
    add("--seed", type=int, help="of data, networks and attacks")
    add("--device", help="auto, cpu or cuda")
    add("--smoke", action="store_true", help="try everything in seconds")
    parser.set_defaults(**asdict(arguments()))
    return arguments(**vars(parser.parse_args()))


def main(args: Args) -> None:
    """Works through the jobs until the stage is over, then prints what is known."""
    clock = Clock(args.minutes)
    claim(args.out)
    device = experiment.pick_device(args.device)
    scale = fitting_scale(args, device)
    given = {name: value for name, value in asdict(args).items() if name not in ("minutes", "out")}
    environment = experiment.environment(device)
    ledger = Ledger(args.out, given, environment)
    images = load(args, scale, device)  # what is wrong with them is told before minutes are spent
    jobs = planned(args, scale, images, device, clock)
    work(jobs, ledger, clock)
    report = tables.report(ledger.records, environment)
    with atomic_write(args.out / "tables.md") as part:
        part.write_text(report, encoding="utf-8")
    print(report)
    failed = sum("failed" in record for record in ledger.records)
    untried = sum(not ledger.tried(job) for job in jobs)
    if untried:
        print(f"{untried} of {len(jobs)} parts are to be done, the same command goes on")
    elif failed:
        raise BilevelError(
            f"{failed} measurements failed, for reasons that {args.out}/results.json tells: the "
            "tables lack them; the same command tries them again"
        )
    else:
        print("nothing is left to be done")


def fitting_scale(args: Args, device: torch.device) -> Scale:
    """What a device can measure on the images given."""
    if args.smoke:
        return plan.SMOKE_GPU if device.type == "cuda" else plan.SMOKE
    if device.type != "cuda":
        return plan.SMALL if args.data else plan.DIGITS
    if args.data is None:
        raise BilevelError(
            "no images are given: classifiers of this size learn nothing from digits; give --data "
            "FILE.npz or a folder of CIFAR-10's images"
        )
    return plan.FULL


def planned(
    args: Args, scale: Scale, images: Splits, device: torch.device, clock: Clock
) -> list[Job]:
    """The jobs, in the order of the plan."""
    jobs = [Job("matrix rates", partial(rate, device), 0.0)]
    for part in scale.parts:
        if isinstance(part, Run):
            jobs.append(train(args, part, images, device, clock))
        else:
            jobs.append(Job(title_of(part), partial(time_steps, part, device, clock), part.minutes))
    return jobs


def rate(device: torch.device) -> list[Record]:
    """The device's rate of arithmetic in a large matrix product, in each precision."""
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bf16")
    return [
        {"precision": precision, "flops_per_second": matrix_rate(precision, device)}
        for precision in precisions
        if device.type == "cuda" or precision != "tf32"
    ]


def title_of(part: Timing) -> str:
    """The name of its job, under which its records are kept."""
    return f"steps of {part.size.model}, {' and '.join(way(*one) for one in part.ways)}"


def time_steps(part: Timing, device: torch.device, clock: Clock) -> list[Record]:
    """Times a step of every method under each schedule, computed in each way."""
    cases = [
        Case(method, schedule, *how)
        for how in part.ways
        for schedule in part.schedules
        for method in METHODS
    ]

    def tell(text: str) -> None:
        print(" ", text, flush=True)
        if part.minutes:  # what was compiled until then is found in torch's cache
            clock.check()

    try:
        return measure(part.size, cases, device, part.rounds, tell)
    finally:
        torch._dynamo.reset()  # what was compiled for these games serves no other
        gc.collect()  # a compiled network refers to itself
        if device.type == "cuda":
            torch.cuda.empty_cache()


def train(args: Args, part: Run, images: Splits, device: torch.device, clock: Clock) -> Job:
    """A training run by the fast recipe."""
    recipe = fast(replace(RECIPES[dataset(args)], model=part.model))
    epochs = args.epochs if args.epochs is not None else part.epochs
    precision = part.precision or default_precision(device)
    training = Training(
        part.method,
        replace(
            recipe,
            attacker=part.attacker,
            warm_start=part.warm_start,
            epochs=recipe.epochs if epochs is None else epochs,
        ),
        dataset(args),
        precision=precision,
        fast=part.fast,
        seed=args.seed + part.seed,
        folder=args.out / part.model / part.name.replace(", ", "-").replace(" ", "-"),
        attack_minutes=part.minutes,
    )
    run = partial(training.run, images, clock)
    return Job(f"training {part.model}, {part.name}", run, part.minutes)


def dataset(args: Args) -> Dataset:
    """The name of the dataset that is given."""
    if args.data is None:
        return "digits"
    return "npz" if args.data.suffix == ".npz" else "folder"


def load(args: Args, scale: Scale, device: torch.device) -> Splits:
    """The images, on the device."""
    splits = load_images(dataset(args), args.data or ".", seed=args.seed)
    train, validation, test = scale.images
    if scale.compiled:  # for each size of batch another time: an epoch has whole ones only
        batch_size = RECIPES[dataset(args)].batch_size
        most = len(splits.train) if train is None else min(train, len(splits.train))
        train = most // batch_size * batch_size
    sizes = train, validation, test if args.test_size is None else args.test_size
    parts = (sample(part, size) for part, size in zip(splits, sizes, strict=True))
    return Splits(*(part.to(device) for part in parts))


if __name__ == "__main__":
    commandline.run(main, Args, read_arguments)
