"""What users write, with types: checked by mypy as part of the library, see ``pyproject.toml``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import bilevel
from bilevel.solvers import Oracle


class Data(NamedTuple):
    """A batch of one's own."""

    x: Tensor


class Step(bilevel.Update):
    """Moves a tensor."""

    def forward(
        self, y: Tensor, gradient: Tensor, context: Tensor | None, state: Any
    ) -> tuple[Tensor, Any]:
        return y + 0.1 * gradient, state


class Steps(bilevel.Update):
    """Moves a dict."""

    def forward(
        self, y: dict[str, Tensor], gradient: dict[str, Tensor], context: Data, state: None
    ) -> tuple[dict[str, Tensor], None]:
        return {name: y[name] + gradient[name] for name in y}, None


class Climb(bilevel.Solver):
    """Calls the oracle."""

    def answer(self, oracle: Oracle) -> Tensor:
        y = oracle.init()
        y = oracle.project(y + oracle.gradient(y))
        moved, _ = oracle.advance(Step(), y, None, steps=2)
        return torch.where(oracle.gain(y) > oracle.gain(moved), y, moved)


class Near(bilevel.FollowerProblem):
    """A problem."""

    sense = "min"

    def init(self, batch: Data) -> Tensor:
        return torch.zeros_like(batch.x)

    def objective(self, leader: bilevel.LeaderProblem, y: Tensor, batch: Data) -> Tensor:
        return (y - batch.x).square().sum(1)

    def project(self, y: Tensor, batch: Data) -> Tensor:
        return y.clamp(0, 1)


class Total(bilevel.LeaderProblem):
    """A leader."""

    def loss(self, y: Tensor, batch: Data) -> Tensor:
        return y.sum()


def both(tensors: bilevel.Bilevel, dicts: bilevel.Bilevel, batch: Data) -> Tensor:
    """Reads answers."""
    return tensors.solve(batch).value.mean() + dicts.solve(batch).value["weight"].mean()
