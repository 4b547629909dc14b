"""Recomputed steps: how many segments, and that they are computed as they were."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor

from bilevel import BilevelError, Iterative, LeaderProblem, Unrolled
from bilevel.adjoints import unrolled
from bilevel.recompute import recomputed
from bilevel.snapshot import Snapshot
from bilevel.updates import Gradient
from tests.problems import BatchNormNet, image_game
from tests.valleys import F64, Numbers, Quadratic, valley


@pytest.mark.parametrize(("recompute", "segments"), [(True, 16), (1, 64), (10, 7), (100, 1)])
def test_the_number_of_segments(monkeypatch, recompute, segments) -> None:
    """True makes them half as long as the root of the number of steps."""
    made = []
    counted = lambda *given, **more: made.append(given) or recomputed(*given, **more)  # noqa: E731
    monkeypatch.setattr(unrolled, "recomputed", counted)
    solver = Iterative(Gradient(0.1), 64)
    Unrolled(recompute=recompute).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))
    assert len(made) == segments


def test_what_is_recomputed_is_computed_as_it_was() -> None:
    """Dropout and statistics that the leader's own pass moves, between solve and backward."""

    class Noisy(LeaderProblem):
        def __init__(self):
            super().__init__()
            self.model = BatchNormNet(dropout=0.5).double()

        def loss(self, y, batch):
            return (self.model(batch.x + y) ** 2).sum()

    _, follower, batch = image_game(dtype=F64)
    slopes = []
    for recompute in (False, 2):
        for mode in ("eval", "train"):
            torch.manual_seed(2)
            leader = Noisy().train()
            solver = Iterative(Gradient(0.5), 4, leader_mode=mode)
            solution = Unrolled(recompute=recompute).solve(solver, follower, leader, batch)
            torch.rand(7)
            leader.eval() if mode == "train" else leader.model(100 * batch.x)
            slopes.append(torch.autograd.grad(solution.value.sum(), list(leader.parameters())))
    for i in (0, 1):
        for plain, again in zip(slopes[i], slopes[2 + i], strict=True):
            torch.testing.assert_close(plain, again)
    assert not torch.equal(slopes[0][0], slopes[1][0])


def test_a_solve_is_freed_without_the_garbage_collector() -> None:
    """Which runs seldom where a few large tensors are all that there is."""
    ends: list[weakref.ref[Tensor]] = []

    class Watched(Quadratic):
        def project(self, y, batch):
            ends.append(weakref.ref(y))
            return y

    solver = Iterative(Gradient(0.1), 4)
    gc.collect()
    gc.disable()
    try:
        value = Unrolled(recompute=2).solve(solver, Watched(), Numbers(3), valley(3, 2.0)).value
        assert any(end() is not None for end in ends)
        del value
        assert all(end() is None for end in ends)
    finally:
        gc.enable()


@pytest.mark.parametrize("adjoint", [Unrolled(recompute=True), Unrolled(truncate=3, recompute=1)])
def test_minibatches_that_are_not_drawn_again(adjoint) -> None:
    class Drawn(Quadratic):
        """Of some of the data, chosen by random numbers that torch does not rewind."""

        def __init__(self, generator: torch.Generator | None) -> None:
            super().__init__()
            self.generator = generator

        def objective(self, leader, y, batch):
            row = torch.randint(len(y), (1,), generator=self.generator)
            return super().objective(leader, y, batch) + y[row].sum()

    batch, leader, solver = valley(4, 5.0), Numbers(3), Iterative(Gradient(0.05), 8)
    for generator in (None, torch.Generator()):
        game = copy.deepcopy(adjoint)
        steps = [game.solve(solver, Drawn(generator), leader, batch).value.sum() for _ in range(2)]
        if generator is None:
            for value in steps:
                value.backward()
        else:
            with pytest.raises(BilevelError, match=r"led elsewhere .* or leave out recompute"):
                steps[0].backward()


def test_recomputed_steps_refuse_a_batch_that_requires_gradients() -> None:
    batch, leader = valley(4, 5.0), Numbers(3)
    computed = batch._replace(b=batch.b * leader.theta)
    solver = Iterative(Gradient(0.1), 4)
    Unrolled().solve(solver, Quadratic(), leader, computed).value.sum().backward()
    leaf = batch._replace(b=batch.b.clone().requires_grad_())
    for given in (computed, leaf):
        with pytest.raises(BilevelError, match="the batch requires gradients: Unrolled"):
            Unrolled(recompute=True).solve(solver, Quadratic(), leader, given)
        with torch.no_grad():  # nobody asks
            Unrolled(recompute=True).solve(solver, Quadratic(), leader, given)


def test_steps_that_depend_on_nothing() -> None:
    class Slope(Quadratic):
        def objective(self, leader, y, batch):
            return y.sum()

    leader, batch, solver = Numbers(3), valley(3, 2.0), Iterative(Gradient(0.1), 4)
    value = Unrolled(recompute=2).solve(solver, Slope(), leader, batch).value
    torch.testing.assert_close(value, torch.full((3,), -0.4, dtype=F64))
    (slope,) = torch.autograd.grad(value.sum() + leader.theta.sum(), leader.theta)
    assert slope.tolist() == [1, 1, 1]


@pytest.mark.parametrize("recompute", [True, 2])
def test_second_derivatives_are_refused(recompute) -> None:
    """Also where autograd takes those of some tensors only, and would leave out the node."""
    leader, batch = Numbers(3), valley(4, 5.0)
    solver = Iterative(Gradient(0.1), 8)
    y = Unrolled(recompute=recompute).solve(solver, Quadratic(), leader, batch).value
    (slope,) = torch.autograd.grad(y.square().sum(), leader.theta, create_graph=True)
    with pytest.raises(BilevelError, match="first derivatives only"):
        torch.autograd.grad(slope.square().sum(), leader.theta)


def test_steps_that_led_elsewhere_are_told_however_large_the_answer_is() -> None:
    class Far(Quadratic):
        """Short steps from a point that is far away, each along another slope."""

        calls = 0

        def init(self, batch):
            return torch.full_like(super().init(batch), 1e4)

        def objective(self, leader, y, batch):
            self.calls += 1
            return self.calls * y.sum() + leader.theta.sum()

    leader, solver = Numbers(3), Iterative(Gradient(0.1), 4)
    y = Unrolled(recompute=2).solve(solver, Far(), leader, valley(3, 2.0)).value
    with pytest.raises(BilevelError, match="recompute: the steps led elsewhere"):
        y.sum().backward()


@pytest.mark.parametrize("moves", [False, True])
def test_a_buffer_is_copied_once_while_it_does_not_change(moves: bool, monkeypatch) -> None:
    class Holding(Numbers):
        def __init__(self) -> None:
            super().__init__(3)
            self.register_buffer("data", torch.zeros(5))

    class Reading(Quadratic):
        def objective(self, leader, y, batch):
            if moves:
                leader.data.add_(1)
            return super().objective(leader, y, batch)

    snapshots = []
    making = lambda *parts, **more: snapshots.append(Snapshot(*parts, **more)) or snapshots[-1]  # noqa: E731
    monkeypatch.setattr(unrolled, "Snapshot", making)
    adjoint, batch = Unrolled(recompute=1), valley(3, 2.0)
    adjoint.solve(Iterative(Gradient(0.1), 4), Reading(), Holding(), batch)
    copies = [dict(snapshot.states[0].buffers[0][1])["data"] for snapshot in snapshots]
    assert [copy[0].item() for copy in copies] == ([0, 1, 2, 3] if moves else [0, 0, 0, 0])
    assert len({copy.data_ptr() for copy in copies}) == (4 if moves else 1)
