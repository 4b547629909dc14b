"""The curves of a report, reused where a stopped run continues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bilevel.experiment import checkpoint
from bilevel.fingerprint import fingerprint
from bilevel.robustness import (
    AttackSettings,
    Curve,
    ImageSet,
    accuracy_by_epsilon,
    accuracy_by_iterations,
)


def measure_curves(
    model: nn.Module,
    images: ImageSet,
    settings: AttackSettings,
    *,
    batch_size: int,
    path: Path,
    resume: bool,
    show: Callable[[str, float, float], None],
) -> tuple[Curve, ...]:
    """Accuracy against ε and against iterations; those at ``path`` if of the same settings.

    A curve whose attack failed is measured again, as the battery does with its attacks.
    """
    key = {
        "epsilon": settings.eps,
        "norm": settings.norm,
        "seed": settings.seed,
        "batch size": batch_size,
        "classifier and images": fingerprint(model, images.images, images.labels),
    }
    kept = checkpoint.load(path) if resume and path.exists() else {}
    if kept.get("key") == key:
        measured = tuple(Curve(**curve) for curve in kept["curves"])
        if not any(curve.problem for curve in measured):
            return measured
    curves = []
    for name, curve in (
        ("accuracy against ε", accuracy_by_epsilon),
        ("accuracy against iterations", accuracy_by_iterations),
    ):
        torch.manual_seed(settings.seed)
        curves.append(
            curve(
                model,
                images,
                settings.eps,
                norm=settings.norm,
                batch_size=batch_size,
                report=partial(show, name),
            )
        )
    checkpoint.save(path, {"key": key, "curves": [asdict(curve) for curve in curves]})
    return tuple(curves)
