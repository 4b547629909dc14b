"""Cost of the whole battery relative to its longest attack.

    python applications/benchmarks/battery.py runs/adv_training/pgm --test-size 1000

Each attack runs alone, on every correctly classified image; then all run together, each on the
images that no earlier attack has broken.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from bilevel import experiment
from bilevel.arguments import choices
from bilevel.experiment import commandline
from bilevel.experiment.files import claim
from bilevel.experiment.tables import Table, cell
from bilevel.robustness import (
    STANDARD,
    Attack,
    AttackSettings,
    Battery,
    ImageSet,
    Trained,
    load_images,
    load_trained,
    make_attacks,
    sample,
)


@dataclass
class Args:
    """Time the battery of robust_eval.py, and each of its attacks alone."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder written by a training application."""
    attack: tuple[str, ...] = STANDARD
    data_dir: Path = Path("data")
    test_size: int = 1000
    out: Path = Path("runs/battery")
    device: str = "auto"
    seed: int = 0
    """Of the attacks."""
    smoke: bool = False
    """Seconds instead of minutes: few images, two attacks."""


def main(args: Args) -> None:
    """Measures, prints the table and writes the results."""
    if args.smoke:
        args.test_size, args.attack = 16, ("fgsm", "pgm-20")
    args.attack = choices("attack", args.attack)
    device = experiment.pick_device(args.device)
    target = load_trained(args.checkpoint)
    claim(args.out)
    for network in (target.model, target.solver):
        if network is not None:
            network.to(device).to(memory_format=torch.channels_last)
    data = load_images(target.about.dataset, args.data_dir, seed=target.about.seed)
    images = sample(data.test, args.test_size).to(device)
    records = measure(args.attack, target, images, args.seed)
    ratios = {unit: ratio(records, unit) for unit in ("seconds", "passes")}
    whole = {"attack": "battery", "how": "÷ longest alone", **ratios}
    environment = experiment.environment(device)
    experiment.write_results(args.out, asdict(args), environment, [*records, whole])
    print_table(records, len(images))
    print(
        f"the battery costs {ratios['passes']:.2f} times its longest attack in passes, "
        f"{ratios['seconds']:.2f} times in seconds"
    )


def measure(
    names: Sequence[str], target: Trained, images: ImageSet, seed: int
) -> list[dict[str, Any]]:
    """A record of each attack alone, then of each in the battery."""
    eps = target.about.epsilon
    make = partial(AttackSettings, eps, target.about.classes, trained=target, seed=seed)
    measured = partial(cost, model=target.model, images=images, eps=eps, seed=seed)
    settings = make(alone=tuple(name for name in names if name != "longer"))
    alone = [
        {"attack": attack, "how": "alone", **spent}
        for name in track(names, "each alone")
        for attack, spent in measured(make_attacks([name], settings)).items()
    ]
    with Console().status("all together"):
        together = measured(make_attacks(names, make()))
    return alone + [{"attack": name, "how": "in battery", **it} for name, it in together.items()]


def print_table(records: Sequence[dict[str, Any]], images: int) -> None:
    """Prints the passes of each attack per image, alone and in the battery."""
    alone, together = (
        [record for record in records if record["how"] == how] for how in ("alone", "in battery")
    )
    rows = [
        [one["attack"], *(cell(how["passes"] / images, ".0f") for how in (one, other))]
        for one, other in zip(alone, together, strict=True)
    ]
    Table(f"passes of each of {images}", ("attack", "alone", "in the battery"), rows).print()


def cost(
    attacks: list[Attack], *, model: nn.Module, images: ImageSet, eps: float, seed: int
) -> dict[str, dict[str, float]]:
    """The cost of each attack of a battery: seconds, and passes, which other load does not change.

    A pass is that of one image through the classifier, forward or backward to the image.
    """
    passes = 0
    marks = {"": (time.perf_counter(), passes)}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        nonlocal passes
        passes += len(logits) * (2 if logits.requires_grad else 1)

    def note(name: str, done: float, total: float) -> None:
        marks[name] = (time.perf_counter(), passes)

    handle = model.register_forward_hook(count)
    Battery(attacks, eps=eps, seed=seed, report=note).run(model, images)
    handle.remove()
    return {
        name: {"seconds": end[0] - begun[0], "passes": end[1] - begun[1]}
        for (_, begun), (name, end) in pairwise(marks.items())
    }


def ratio(records: list[dict[str, Any]], unit: str) -> float:
    """Cost of the battery divided by that of its longest attack alone."""
    longest: float = max(record[unit] for record in records if record["how"] == "alone")
    return sum(record[unit] for record in records if record["how"] == "in battery") / longest


if __name__ == "__main__":
    commandline.run(main, Args)
