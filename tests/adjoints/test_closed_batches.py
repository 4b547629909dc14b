"""Batches of objects that pytree does not open: their gradients are refused in words."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch

from bilevel import (
    BilevelError,
    Implicit,
    Iterative,
    Unrolled,
)
from bilevel.updates import Gradient
from tests.valleys import (
    Numbers,
    Quadratic,
    hypergradient,
)


@dataclass
class Record:
    b: torch.Tensor


class Slotted:
    __slots__ = ("b",)

    def __init__(self, b: torch.Tensor) -> None:
        self.b = b


class Inheriting(Slotted):
    __slots__ = "name"


CLOSED = [Record, Slotted, Inheriting, lambda b: UserDict(b=b)]


CASES = [
    *((wrap, Implicit(), "tuples, lists and dicts") for wrap in CLOSED),
    *((wrap, Unrolled(recompute=True), "batch") for wrap in [*CLOSED, lambda b: [{"b": b}]]),
]


@pytest.mark.parametrize(("wrap", "adjoint", "told"), CASES)
def test_a_gradient_through_a_batch_that_is_not_opened(wrap, adjoint, told) -> None:
    def read(batch):
        batch = batch[0] if isinstance(batch, list) else batch
        return batch.b if hasattr(batch, "b") else batch["b"]

    class Near(Quadratic):
        def init(self, batch):
            return torch.zeros_like(read(batch)).detach()

        def objective(self, leader, y, batch):
            return (y - read(batch)).square().sum() + (y * leader.theta).sum()

    leader = Numbers(3)
    batch = wrap(2 * leader.theta)
    with pytest.raises(BilevelError, match=told):
        hypergradient(adjoint, Iterative(Gradient(0.2), 40), Near(), leader, batch, torch.ones(3))


def test_features_that_are_not_opened_are_no_reason_to_warn_of_theta() -> None:
    """The follower reads the leader through them alone, of which the error that follows tells."""

    class Near(Quadratic):
        def init(self, batch):
            return torch.zeros(3)

        def objective(self, leader, y, batch):
            return (y - batch.b).square().sum()

    leader = Numbers(3)
    value = (
        Implicit()
        .solve(Iterative(Gradient(0.2), 40), Near(), leader, Record(2 * leader.theta))
        .value
    )
    with pytest.raises(BilevelError, match="tuples, lists and dicts"):
        value.sum().backward()
