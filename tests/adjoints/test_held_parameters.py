"""Parts that hold a parameter of the leader's themselves, where the leader is lent others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    BilevelError,
    Detached,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Penalty,
    Sampled,
    Unrolled,
    Update,
)
from bilevel.testing import check_adjoint
from bilevel.updates import Gradient, Optimizer
from tests.valleys import F64

OTHERS: dict[str, Callable[[], Adjoint]] = {  # each checks once
    "recomputed": lambda: Unrolled(recompute=True),
    "forward": Forward,
    "implicit": Implicit,
    "penalty": lambda: Penalty(100.0),
    "sampled": lambda: Sampled(0.01),
}


class Rate(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1, dtype=F64))

    def loss(self, y: Tensor, batch: None) -> Tensor:
        return y


class One(FollowerProblem):
    """½(y − 1)², with ½ w y² for a weight that it holds."""

    sense = "min"

    def __init__(self, weight: Tensor | None = None) -> None:
        self.weight = weight

    def init(self, batch: None) -> Tensor:
        return torch.zeros((), dtype=F64)

    def objective(self, leader: Rate, y: Tensor, batch: None) -> Tensor:
        held = 0.0 if self.weight is None else self.weight * y.square()
        return ((y - 1).square() + held) / 2


def test_unrolled_reads_what_is_held() -> None:
    """Y = 1 − (1 − η)³, so dy/dη = 3(1 − η)²."""
    leader = Rate()
    solver = Iterative(Optimizer(torch.optim.SGD, lr=leader.rate), 3)
    Unrolled().solve(solver, One(), leader, None).value.backward()
    assert leader.rate.grad is not None
    assert leader.rate.grad.item() == pytest.approx(3 * 0.9**2)


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_others_refuse_an_update_that_holds_it(make: Callable[[], Adjoint]) -> None:
    leader, adjoint = Rate(), make()
    solver = Iterative(Optimizer(torch.optim.SGD, lr=leader.rate), 3)
    with torch.no_grad():  # has no graph in which it would show, and is not the one check
        adjoint.solve(solver, One(), leader, None)
    with pytest.raises(BilevelError, match=r"but rate itself is read: .* hold the leader and read"):
        adjoint.solve(solver, One(), leader, None).value.backward()


@pytest.mark.parametrize("make", [*OTHERS.values()][1:], ids=[*OTHERS][1:])
def test_also_where_the_batch_has_a_graph_on_which_iterates_would_hang(
    make: Callable[[], Adjoint],
) -> None:
    leader, batch = Rate(), torch.ones((), dtype=F64, requires_grad=True)
    solver = Iterative(Optimizer(torch.optim.SGD, lr=leader.rate), 3)
    with pytest.raises(BilevelError, match="but rate itself is read"):
        make().solve(solver, One(), leader, batch)


def test_recomputed_steps_refuse_a_follower_that_holds_it() -> None:
    leader = Rate()
    value = (
        Unrolled(recompute=True)
        .solve(Iterative(Gradient(0.1), 3), One(leader.rate), leader, None)
        .value
    )
    with pytest.raises(BilevelError, match=r"recompute computes .* but rate itself is read"):
        value.backward()


@pytest.mark.parametrize("read_too", [False, True], ids=["held", "held and read"])
@pytest.mark.parametrize("make", [*OTHERS.values()][1:], ids=[*OTHERS][1:])
def test_others_refuse_a_follower_that_holds_it(
    make: Callable[[], Adjoint], read_too: bool
) -> None:
    """Also where the leader's own is read beside it, so that a part of the gradient is right."""

    class Both(One):
        def objective(self, leader: Rate, y: Tensor, batch: None) -> Tensor:
            return super().objective(leader, y, batch) + leader.rate * y * read_too

    leader = Rate()
    value = make().solve(Iterative(Gradient(0.5), 40), Both(leader.rate), leader, None).value
    with pytest.raises(BilevelError, match=r"but rate itself is read: .* or the follower holds it"):
        value.backward()


def test_finite_differences_move_what_is_held() -> None:
    leader = Rate()
    solver = Iterative(Gradient(0.5), 40)
    check_adjoint(Unrolled(), solver, One(leader.rate), leader, None)
    with pytest.raises(AssertionError, match="the gradient of rate is off"):
        check_adjoint(Detached(), solver, One(leader.rate), leader, None)


def test_a_fixed_point_that_holds_it_is_refused() -> None:
    """Of a solver that does not use it, so that only the backward pass reads it."""

    class Shrunk(Update):
        needs_context = False

        def __init__(self, rate: Tensor) -> None:
            super().__init__()
            self.held = [rate]

        def forward(self, y: Tensor, gradient: Tensor, context: None, state: None) -> Any:
            return y + 0.5 * gradient - self.held[0] * y, state

    leader = Rate()
    leader.register_parameter("used", nn.Parameter(torch.ones((), dtype=F64)))
    adjoint = Implicit(fixed_point=Shrunk(leader.rate))
    value = adjoint.solve(Iterative(Gradient(0.5), 40), One(), leader, None).value
    with pytest.raises(BilevelError, match=r"Implicit\(.* but rate itself is read"):
        value.backward()


class Scaled(Rate):
    """Beside its parameter it has tensors that require a gradient and are none."""

    def __init__(self, place: str) -> None:
        super().__init__()
        scale = torch.ones((), dtype=F64, requires_grad=True)
        if place == "buffer":
            self.register_buffer("scale", scale)
        else:
            self.scale = scale


class Weighted(One):
    """½(y − 1)² + ½ η y² with the scale of the leader, which the start may read instead."""

    def __init__(self, *, at_start: bool) -> None:
        super().__init__()
        self.at_start = at_start

    def init(self, batch: None) -> Tensor:
        return self.leader.scale if self.at_start else torch.zeros((), dtype=F64)

    def objective(self, leader: Scaled, y: Tensor, batch: None) -> Tensor:
        scale = 1.0 if self.at_start else leader.scale
        return super().objective(leader, y, batch) + leader.rate * scale * y.square() / 2


@pytest.mark.parametrize("place", ["buffer", "attribute"])
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_others_refuse_a_tensor_that_waits_for_a_gradient(
    make: Callable[[], Adjoint], place: str
) -> None:
    leader, follower, solver = Scaled(place), Weighted(at_start=False), Iterative(Gradient(0.5), 40)
    value = make().solve(solver, follower, leader, None).value
    with pytest.raises(BilevelError, match=r"Scaled\.scale requires a gradient and .* not give it"):
        value.backward()


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_others_refuse_one_of_the_follower(make: Callable[[], Adjoint]) -> None:
    follower = One(torch.ones((), dtype=F64, requires_grad=True))
    with pytest.raises(BilevelError, match=r"One\.weight requires a gradient and .* not give it"):
        make().solve(Iterative(Gradient(0.5), 40), follower, Rate(), None).value.backward()


def test_a_start_that_waits_for_a_gradient_is_refused() -> None:
    leader, follower = Scaled("attribute"), Weighted(at_start=True)
    follower.leader = leader
    with pytest.raises(BilevelError, match=r"Scaled\.scale requires a gradient"):
        Forward().solve(Iterative(Gradient(0.5), 3), follower, leader, None)


def test_unrolled_gives_it_to_a_tensor_that_is_no_parameter() -> None:
    """Y = 1 / (1 + η s), so dy/ds = −η / (1 + η)² at s = 1."""
    leader = Scaled("buffer")
    solver = Iterative(Gradient(0.5), 60)
    Unrolled().solve(solver, Weighted(at_start=False), leader, None).value.backward()
    assert leader.scale.grad.item() == pytest.approx(-0.1 / 1.1**2)
