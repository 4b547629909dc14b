"""Whether it helps that an attacker learns: learned and hand-designed ones of as many steps.

    OMP_NUM_THREADS=1 python applications/benchmarks/learned_steps.py

K steps of a small learned attacker cost about as much as K of PGM, so that the paper's comparison,
with PGM of ten steps, does not tell whether what is saved is saved by learning. Classifiers are
trained with both for several K, over seeds, by the recipe of the dataset, and their worst case over
PGM-20, PGM-100, APGD-CE and APGD-T is taken. A stopped run goes on by the same command.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from suite.ledger import Clock, Job, Ledger, Record, work
from suite.training import Training
from tabulated import adversarial
from tabulated.adversarial import HAND_DESIGNED, LEARNED, STEPPED
from tabulated.reading import error_bars
from torch.nn.functional import avg_pool2d

from bilevel import BilevelError, experiment
from bilevel.arguments import choices, count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim
from bilevel.experiment.style import COLORS, STYLE, save_png
from bilevel.robustness import RECIPES, ImageSet, Recipe, Splits, fast, load_images, sample
from bilevel.robustness.data.sources import Dataset


@dataclass(frozen=True)
class Scale:
    """What is trained, on how much.

    Args:
        dataset: Where the images come from.
        recipe: How.
        images: Training, validation and test images; None for all.
        halved: Whether height and width of the images are halved.
    """

    dataset: Dataset
    recipe: Recipe
    images: tuple[int | None, int | None, int | None] = (None, None, None)
    halved: bool = False


_FASHION = RECIPES["fashion-mnist"]
_HALVED = Scale("fashion-mnist", replace(_FASHION, epochs=8), (20000, 1000, 1000), halved=True)
_CIFAR = Scale(
    "folder",
    replace(fast(RECIPES["folder"]), model="wrn-16-1", epochs=10, padding=2),
    (20000, 1000, 1000),
    halved=True,
)

SCALES = {
    "digits": Scale("digits", RECIPES["digits"]),
    "fashion-mnist": Scale("fashion-mnist", replace(_FASHION, epochs=10), (4000, 500, 500)),
    "fashion-mnist-halved": _HALVED,
    "fashion-mnist-augmented": replace(
        _HALVED, recipe=replace(_HALVED.recipe, padding=1, flip=True)
    ),
    "cifar10-halved": _CIFAR,
    "cifar10-halved-16": replace(_CIFAR, recipe=replace(_CIFAR.recipe, epsilon=16 / 255)),
}
SMOKE = replace(SCALES["digits"], recipe=replace(RECIPES["digits"], epochs=1), images=(128, 32, 16))


@dataclass
class Args:
    """Train against learned and hand-designed attackers of 1, 2, … steps, and compare."""

    dataset: Literal[
        "digits",
        "fashion-mnist",
        "fashion-mnist-halved",
        "fashion-mnist-augmented",
        "cifar10-halved",
        "cifar10-halved-16",
    ] = "digits"
    """Of Fashion-MNIST 4,000 images, or 20,000 of half the height and width, plain or augmented,
    of CIFAR-10 as many, augmented, in the recipe's ball or for ε = 16/255."""
    method: tuple[str, ...] = STEPPED
    """Attackers to train against, learned and hand-designed."""
    data_dir: Path = Path("data")
    """Where Fashion-MNIST is, or is downloaded to, or the folder of CIFAR-10's classes."""
    attacker_lr: float | None = None
    """The learned attackers' learning rate, in place of the recipe's."""
    precision: Literal["float32", "bf16"] = "float32"
    """The precision of training; attacks compute in float32."""
    warm_start: bool = False
    """Start the attack on each image where the last one on it has ended."""
    seeds: int = 5
    """Number of seeds, from 0 on."""
    out: Path = Path("runs/learned_steps")
    """Results, checkpoints and the figure; what has been measured is kept."""
    smoke: bool = False
    """Try everything in seconds."""


def main(args: Args) -> None:
    """Trains and attacks, prints the table and draws the figure."""
    if args.smoke:
        args.dataset, args.seeds = "digits", 2
    args.method = choices("method", args.method, STEPPED)
    count("seeds", args.seeds)
    claim(args.out)
    given = {name: value for name, value in asdict(args).items() if name != "out"}
    ledger = Ledger(args.out, given, experiment.environment(torch.device("cpu")))
    jobs = planned(args)
    work(jobs, ledger, Clock(math.inf))
    measured = [one for job in jobs for one in ledger.measured(job)]
    print(adversarial.learned_steps(measured))
    draw(args.out / "learned-steps.png", measured)
    if not all(map(ledger.done, jobs)):
        raise BilevelError(
            f"some runs failed, for reasons that {args.out}/results.json tells: the same command "
            "tries them again"
        )


def planned(args: Args) -> list[Job]:
    """A job for each classifier."""
    scale = SMOKE if args.smoke else SCALES[args.dataset]
    recipe = replace(scale.recipe, warm_start=args.warm_start)
    if args.attacker_lr is not None:
        recipe = replace(recipe, attacker_lr=args.attacker_lr)
    load_sample(scale, args.data_dir, 0)  # what is wrong with them is told at once
    jobs = []
    for seed in range(args.seeds):
        load = partial(load_sample, scale, args.data_dir, seed)
        for method in args.method:
            folder = args.out / f"{method}-{seed}"
            training = Training(
                method,
                recipe,
                scale.dataset,
                args.precision,
                fast=False,
                seed=seed,
                folder=folder,
            )
            run = partial(train, args.dataset, training, load)
            jobs.append(Job(f"{method}, seed {seed}", run, 0.0))
    return jobs


@lru_cache(maxsize=1)
def load_sample(scale: Scale, folder: Path, seed: int) -> Splits:
    """The images of a seed."""
    splits = load_images(scale.dataset, folder, seed=seed)
    parts = [sample(*pair) for pair in zip(splits, scale.images, strict=True)]
    return Splits(*(map(halve, parts) if scale.halved else parts))


def halve(data: ImageSet) -> ImageSet:
    """Means of 2×2 pixels."""
    means = avg_pool2d(data.images.float(), 2)
    return replace(data, images=means.round().to(data.images.dtype))


def train(name: str, training: Training, load: Callable[[], Splits]) -> list[Record]:
    """One classifier."""
    return [{**one, "dataset": name} for one in training.run(load(), Clock(math.inf))]


def draw(path: Path, records: list[Record]) -> None:
    """The worst case against the number of steps: the mean over seeds, and the range."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        draw_lines(figure.subplots(), records)
        save_png(path, figure)


def draw_lines(axes: Axes, records: list[Record]) -> None:
    """A line for hand-designed attackers, and one for learned ones."""
    kinds = ("hand-designed", HAND_DESIGNED, COLORS[1], 0.98), ("learned", LEARNED, COLORS[0], 1.02)
    for label, methods, color, beside in kinds:
        found: dict[float, list[float]] = {}
        for steps, method in methods.items():
            if worst := [100 * one["worst_case"] for one in records if one["method"] == method]:
                found[beside * steps] = worst
        means, bars = error_bars(found.values())
        axes.errorbar(
            list(found), means, bars, color=color, label=label, marker="o", markersize=4, capsize=3
        )
    axes.set_xscale("log")
    axes.set_xticks(list(HAND_DESIGNED), list(map(str, HAND_DESIGNED)))
    axes.minorticks_off()
    axes.set_xlabel("steps K of the attacker in training")
    axes.set_ylabel("accuracy in the worst case, %")
    axes.legend(edgecolor="none", loc="lower right")


if __name__ == "__main__":
    torch.set_num_threads(1)
    commandline.run(main, Args)
