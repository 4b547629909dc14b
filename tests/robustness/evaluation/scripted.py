"""A classifier and attacks whose results are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bilevel import pgm
from bilevel.robustness import Attack, Batch, ImageSet, Linf, SolverAttack

EPS = 0.2


COUNT = 30


class Threshold(nn.Module):
    """Class 1 where the mean pixel exceeds one half."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


class Scripted(Attack):
    """Breaks the images whose grey level is in a list, and notes which ones it was given."""

    def __init__(self, name: str, breaks: set[int], *, tries: int = 1, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.breaks = breaks
        self._tries = tries
        self.prepared = False
        self.seen: list[list[int]] = []

    @property
    def tries(self) -> int:
        return self._tries

    def prepare(self, model: nn.Module) -> None:
        self.prepared = True

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        grey = (batch.x[:, 0, 0, 0] * 255).round().long().tolist()
        self.seen.append(grey)
        out = batch.x.clone()
        for i, level in enumerate(grey):
            if level in self.breaks and level % self._tries == attempt:
                out[i] = (batch.x[i] + (EPS if level < 128 else -EPS)).clamp(0, 1)
        return out


def noisy() -> list[Attack]:
    """Random starts, so that a run depends on its random numbers."""
    start = Linf(EPS, start=EPS)
    return [
        SolverAttack("first", start, pgm(0.01, 1), restarts=2),
        SolverAttack("second", start, pgm(0.01, 2), alone=True),
        SolverAttack("third", start, pgm(0.01, 3)),
    ]


def near(images: ImageSet, reach: float) -> set[int]:
    """The grey levels that ``reach`` carries over the threshold."""
    grey = images.images[:, 0, 0, 0].tolist()
    return {level for level in grey if abs(level / 255 - 0.5) < reach}
