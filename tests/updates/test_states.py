"""The states of updates: their tensors are in tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import BilevelError, FollowerProblem, Iterative, Unrolled, Update
from bilevel.testing import check_update
from tests.problems import Weights

CLOSED = "Momentum keeps tensors in a Velocity: .* in tuples, lists and dicts alone"


@dataclass
class Velocity:
    m: Tensor


class Near(FollowerProblem):
    sense = "min"

    def init(self, batch: None) -> Tensor:
        return torch.zeros(3)

    def objective(self, leader: Any, y: Tensor, batch: None) -> Tensor:
        return (y - leader.w).square().sum()


class Momentum(Update):
    """Wraps its state."""

    needs_context = False

    def __init__(self, wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.wrap, self.unwrap = wrap, unwrap

    def forward(self, y: Tensor, gradient: Tensor, context: None, state: Any) -> Any:
        m = gradient if state is None else self.unwrap(state) / 2 + gradient
        return y + 0.1 * m, self.wrap(m)


def closed() -> Momentum:
    return Momentum(Velocity, lambda state: state.m)


def test_a_warm_start_refuses_what_it_cannot_detach_and_save() -> None:
    solver = Iterative(closed(), 3, warm_start=True)
    with pytest.raises(BilevelError, match=CLOSED):
        solver.solve(Near(), Weights(3), None)


def test_recomputed_steps_refuse_what_they_cannot_differentiate() -> None:
    with pytest.raises(BilevelError, match=CLOSED):
        Unrolled(recompute=True).solve(Iterative(closed(), 3), Near(), Weights(3), None)


def test_the_check_of_an_update_names_it() -> None:
    with pytest.raises(AssertionError, match=CLOSED):
        check_update(closed(), torch.zeros(3))


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda m: {"m": [m], "steps": 1}, lambda state: state["m"][0]),
        (lambda m: (m, torch.float32, object()), lambda state: state[0]),
    ],
)
def test_other_states_are_as_good_as_tensors(wrap: Any, unwrap: Any) -> None:
    """Warm-started and recomputed."""
    leader = Weights(3)
    grads = []
    for update in (Momentum(wrap, unwrap), Momentum(lambda m: m, lambda m: m)):
        solver = Iterative(update, 3, warm_start=True)
        for _ in range(2):
            value = Unrolled(recompute=1).solve(solver, Near(), leader, None).value
        grads += torch.autograd.grad(value.sum(), list(leader.parameters()))
    assert torch.equal(*grads)


def test_without_either_a_state_may_be_anything() -> None:
    leader = Weights(3)
    value = Unrolled().solve(Iterative(closed(), 3), Near(), leader, None).value
    other = Momentum(lambda m: m, lambda m: m)
    assert torch.equal(value, Unrolled().solve(Iterative(other, 3), Near(), leader, None).value)
