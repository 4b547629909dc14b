"""Compiled steps: those of the plain solve, and what cannot be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import pytest
import torch

from bilevel import BilevelError, Iterative, Unrolled
from bilevel.adjoints import compiled as compiled_adjoint
from bilevel.adjoints.compiled import _compiled_step
from bilevel.updates import Gradient, Optimizer, Update
from bilevel.updates.optimizer import STEPS
from tests.valleys import F64, Boxed, Numbers, error, hypergradient


@pytest.fixture
def compiled(monkeypatch) -> Iterator[Unrolled]:
    """Traced and differentiated as by the default backend, which takes its time to make code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _compiled_step.cache_clear()
    yield Unrolled(compile=True)
    _compiled_step.cache_clear()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "update",
    [
        Gradient(0.1),
        Optimizer(torch.optim.SGD, lr=0.1, momentum=0.5),
        *(Optimizer(kind, lr=0.1) for kind in STEPS),
    ],
    ids=repr,
)
def test_compiled_steps_are_the_same(compiled, update) -> None:
    leader, batch, v = Numbers(4), 2 * torch.randn(5, 4, dtype=F64), torch.randn(5, 4, dtype=F64)
    found, like = (
        hypergradient(adjoint, Iterative(update, 10), Boxed(), leader, batch, v)
        for adjoint in (compiled, Unrolled())
    )
    assert error(found[0], like[0]) < 1e-10
    assert found[1].stats.keys() == like[1].stats.keys()
    for name, stat in like[1].stats.items():
        torch.testing.assert_close(found[1].stats[name], stat)


@pytest.mark.filterwarnings("ignore")
def test_a_step_without_a_gradient(compiled) -> None:
    class Halving(Update):
        needs_gradient = False

        def forward(self, y, gradient, context, state):
            return y / 2, state

    solver, batch = Iterative(Halving(), 2), torch.ones(1, 2, dtype=F64)
    found, like = (a.solve(solver, Boxed(), Numbers(2), batch) for a in (compiled, Unrolled()))
    assert torch.equal(found.value, like.value)
    assert found.stats.keys() == like.stats.keys()


@pytest.mark.filterwarnings("ignore")
def test_a_projection_to_another_shape_is_refused(compiled) -> None:
    class Summed(Boxed):
        def project(self, y, batch):
            return y.mean(1, keepdim=True)

    solver, batch = Iterative(Gradient(0.1), 2), torch.ones(1, 2, dtype=F64)
    with pytest.raises(BilevelError, match=r"Gradient, followed by Summed\.project, returned"):
        compiled.solve(solver, Summed(), Numbers(2), batch)


@pytest.mark.filterwarnings("ignore")
def test_the_steps_of_a_problem_within_the_problem_are_compiled(compiled, monkeypatch) -> None:
    class Within(Iterative):
        def answer(self, oracle):
            return super().answer(oracle.of(oracle.follower))

    compute, calls = compiled_adjoint._call_compiled, []
    monkeypatch.setattr(
        compiled_adjoint, "_call_compiled", lambda *args: calls.append(1) or compute(*args)
    )
    compiled.solve(Within(Gradient(0.1), 3), Boxed(), Numbers(2), torch.ones(1, 2, dtype=F64))
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore")
@torch._dynamo.config.patch(cache_size_limit=2)
def test_more_settings_are_compiled_than_torch_keeps(compiled) -> None:
    batch = torch.ones(1, 2, dtype=F64)
    for lr in (0.1, 0.2, 0.3, 0.4):
        solver = Iterative(Gradient(lr), 1)
        y, like = (
            a.solve(solver, Boxed(), Numbers(2), batch).value for a in (compiled, Unrolled())
        )
        assert torch.equal(y, like)


def test_the_reason_is_not_that_torch_had_compiled_too_many(monkeypatch) -> None:
    failures = [
        torch._dynamo.exc.FailOnRecompileLimitHit("too many"),
        torch._dynamo.exc.Unsupported("it branches"),
    ]

    def step(*args):
        raise failures.pop(0)

    compiled_step = lru_cache(lambda: step)
    monkeypatch.setattr(compiled_adjoint, "_compiled_step", compiled_step)
    batch = torch.ones(1, 2, dtype=F64)
    with pytest.raises(BilevelError, match=r"cannot be compiled \(it branches"):
        Unrolled(compile=True).solve(Iterative(Gradient(0.1), 2), Boxed(), Numbers(2), batch)


@pytest.mark.filterwarnings("ignore")
def test_running_statistics_are_named_as_what_prevents_it(compiled) -> None:
    class Normalised(Boxed):
        def __init__(self) -> None:
            self.norm = torch.nn.BatchNorm1d(4).double()

        def objective(self, leader, y, batch):
            return super().objective(leader, self.norm(y), batch)

    solver = Iterative(Gradient(0.1), 2)
    told = r"\(.*in-place.*track_running_stats=False; "
    with pytest.raises(BilevelError, match=told):
        compiled.solve(solver, Normalised(), Numbers(4), torch.randn(5, 4, dtype=F64))


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_cannot_be_compiled(compiled) -> None:
    class Halving(Update):
        def forward(self, y, gradient, context, state):
            return (y / 2 if y.norm() > 1 else y + gradient), state

    solver = Iterative(Halving(), 2)
    with pytest.raises(BilevelError, match=r"Halving cannot be compiled \(.*leave out compile"):
        compiled.solve(solver, Boxed(), Numbers(4), torch.randn(5, 4, dtype=F64))
