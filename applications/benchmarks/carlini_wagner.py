"""The attack of Carlini & Wagner: batched, and one image at a time.

    python applications/benchmarks/carlini_wagner.py

Both search with the same settings. The authors' procedure takes one image at a time and continues
until it has found the smallest perturbation; it is timed as it is, and also stopped as soon as the
image is broken within ε, which is where `CarliniWagner` stops. Measurements are interleaved, so
that other load slows all equally; the result is the median over rounds of the ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from timing import interleaved, spread
from torch import Tensor, nn

from bilevel import ZeroSum, experiment, fgsm, frozen
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim
from bilevel.robustness import (
    RECIPES,
    Batch,
    CarliniWagner,
    Linf,
    attack,
    batches,
    build_model,
    load_images,
    make_game,
    shuffled_batches,
)
from bilevel.robustness.threats.losses import margin


@dataclass
class Args:
    """Attack handwritten digits with CW-L∞, batched and one by one."""

    images: int = 100
    """Test images to attack."""
    eps: float = 0.2
    epochs: int = 2
    """Epochs of adversarial training (FGSM) of the small CNN."""
    rounds: int = 3
    """Interleaved rounds."""
    out: Path = Path("runs/carlini_wagner")
    device: str = "auto"
    seed: int = 0
    smoke: bool = False
    """Seconds instead of minutes: two images, one round."""


def main(args: Args) -> None:
    """Trains, attacks, prints the ratios and writes the results."""
    for name in ("images", "rounds"):
        count(name, getattr(args, name))
    if args.smoke:
        args.images, args.epochs, args.rounds = 2, 1, 1
    device = experiment.pick_device(args.device)
    claim(args.out)
    model, batch = trained(args, device)
    follower, solver = Linf(args.eps, loss=margin), CarliniWagner()
    attacks: dict[str, Callable[[], Tensor]] = {
        "batched": lambda: attack(model, follower, solver, batch).x,
        "one by one": lambda: one_by_one(model, batch),
        "one by one, stopped": lambda: one_by_one(model, batch, stop=args.eps),
    }
    broken: dict[str, Tensor] = {}

    def turn(name: str) -> None:
        broken[name] = is_broken(model, attacks[name](), batch, args.eps)

    turns = {name: partial(turn, name) for name in attacks}
    seconds = interleaved(turns, track(range(args.rounds), "rounds"))
    records = [record(name, broken, seconds) for name in turns]
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    for row in records:
        Console().print(
            f"{row['attack']}: {row['broken']} of {len(batch.y)} broken in {row['seconds']:.3g} s, "
            f"{row['ratio_to_batched']:.3g} times the batched attack; "
            f"{row['missed_by_batched']} of them not broken by it"
        )


def trained(args: Args, device: torch.device) -> tuple[nn.Module, Batch]:
    """A small CNN after a short adversarial training, and test images."""
    torch.manual_seed(args.seed)
    data = load_images("digits", ".", seed=args.seed)
    train, follower = data.train.to(device), Linf(args.eps)
    model = build_model("small-cnn", channels=1, classes=10).to(device)
    model.to(memory_format=torch.channels_last)  # as the applications do
    game = make_game(ZeroSum(model, follower), follower, fgsm(args.eps), RECIPES["digits"])
    for epoch in range(args.epochs):
        for batch in shuffled_batches(train, 64, seed=args.seed, epoch=epoch):
            game.step(batch)
    return model, next(batches(data.test.to(device), args.images))


def one_by_one(model: nn.Module, batch: Batch, stop: float = 0.0, steps: int = 100) -> Tensor:
    """Adversarial images by :func:`one_image`."""
    with frozen(model):
        rows = zip(batch.x.split(1), batch.y.tolist(), strict=True)
        return torch.cat([x + one_image(model, x, label, stop, steps) for x, label in rows])


def one_image(model: nn.Module, x: Tensor, label: int, stop: float, steps: int) -> Tensor:
    """The last δ that breaks the image (zero if none does); τ shrinks after each success.

    The search ends at the first δ within the radius ``stop``.
    """
    delta, tau, exponent = torch.zeros_like(x), 1.0, -5
    while tau > 1 / 256:
        success = one_tau(model, x, label, delta, tau, exponent, steps)
        if success is None:
            break
        delta, exponent = success
        reach = delta.abs().max().item()
        if reach <= stop:
            break
        tau = 0.9 * min(tau, reach)
    return delta


def one_tau(
    model: nn.Module, x: Tensor, label: int, start: Tensor, tau: float, exponent: int, steps: int
) -> tuple[Tensor, int] | None:
    """A δ that breaks the image within τ, and the exponent of c; None if no c succeeds."""
    delta = start.clone().requires_grad_()
    adam = torch.optim.Adam([delta], lr=5e-3)
    others = torch.arange(model(x).shape[1], device=x.device) != label
    while exponent <= 2:
        c = 10.0**exponent
        for _ in range(steps):
            logits = model(x + delta)[0]
            gap = logits[label] - logits[others].max()
            loss = c * F.relu(gap) + F.relu(delta.abs() - tau).sum()
            if loss < 1e-4 * c and gap < 0:
                return delta.detach(), exponent
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                delta.copy_((x + delta).clamp(0, 1) - x)
        exponent += 1
    return None


def is_broken(model: nn.Module, images: Tensor, batch: Batch, eps: float) -> Tensor:
    """Which images are misclassified and within ε (up to rounding) of the clean ones."""
    with torch.no_grad(), frozen(model):
        wrong = model(images).argmax(1) != batch.y
    near = (images - batch.x).abs().flatten(1).amax(1) <= eps + 1e-6
    broken: Tensor = wrong & near
    return broken.cpu()


def record(name: str, broken: dict[str, Tensor], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The record of an attack; ratios are taken within rounds."""
    return {
        "attack": name,
        "broken": int(broken[name].sum()),
        "missed_by_batched": int((broken[name] & ~broken["batched"]).sum()),
        "seconds": median(seconds[name]),
        **spread("ratio_to_batched", seconds[name], seconds["batched"]),
    }


if __name__ == "__main__":
    commandline.run(main, Args)
