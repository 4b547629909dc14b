"""What a game in several processes checks of its first answer, by what the others have found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Detached,
    Implicit,
    Iterative,
    Parametric,
    Solver,
    Unrolled,
    distributed,
)
from bilevel.checks.processes import check_same_problem
from bilevel.frozen import Mode
from bilevel.problem import FollowerProblem
from bilevel.updates import CNN, Gradient
from tests.problems import Apart, BatchNormNet, Pulled

Gather = Callable[[Tensor], list[Tensor]]
REFUSED = "objective is a scalar, so that the batch shares one y, and the processes have samples"


def check(
    monkeypatch: pytest.MonkeyPatch,
    gather: Gather,
    y: Any,
    follower: FollowerProblem | None = None,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    part: nn.Module | None = None,
) -> None:
    """Compares y with what ``gather`` makes of it, then its gradient likewise.

    Where each sample has its own y, ``gather`` is given their number.
    """
    leader, solver = Apart(), solver or Iterative(Gradient(0.25), steps=1)
    leader.part = part
    own = list(solver.parameters())
    game = Bilevel(
        leader,
        follower or Pulled(),
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.SGD(own, lr=0.1) if own else None,
        adjoint=adjoint or Unrolled(),
    )
    game.pool = distributed.Pool()
    game.pool.share = 0.5
    monkeypatch.setattr(distributed, "all_gather", gather)
    check_same_problem(game, y, torch.zeros(2))


def test_gradients_are_compared_at_the_answer_of_the_first_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Tensor] = []

    def gather(value: Tensor) -> list[Tensor]:
        told.append(value)
        return [torch.tensor([3.0, 1.0, 1.0]), value] if len(told) == 1 else [value, value]

    with torch.no_grad():  # as in a solve that is only looked at
        check(monkeypatch, gather, torch.zeros(3))
    torch.testing.assert_close(told, [torch.zeros(3), torch.tensor([4.0, 0.0, 0.0])])


@pytest.mark.parametrize(
    ("size", "apart", "same"),
    [(1.0, 0.9e-3, True), (1.0, 1.2e-3, False), (0.0, 0.9e-6, True), (0.0, 1.2e-6, False)],
)
def test_gradients_may_differ_by_rounding(
    monkeypatch: pytest.MonkeyPatch, size: float, apart: float, same: bool
) -> None:
    """By a thousandth of the larger, or by a millionth."""
    y = torch.ones(3) + torch.tensor([0.0, size / 2, 0.0])
    found = iter([torch.zeros(3), torch.tensor([apart, 0.0, 0.0])])

    def gather(value: Tensor) -> list[Tensor]:
        other = value - next(found)
        return [value, other, other]

    if same:
        check(monkeypatch, gather, y)
    else:
        with pytest.raises(BilevelError, match=f"Pulled.{REFUSED}"):
            check(monkeypatch, gather, y)


def test_answers_of_different_shapes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BilevelError, match=REFUSED):
        check(monkeypatch, lambda value: [value, value[1:]], torch.zeros(3))


@pytest.mark.parametrize(
    ("solver", "adjoint", "told"),
    [
        (Parametric(torch.zeros(3)), Detached(), 0),
        (Parametric(torch.zeros(3)), Implicit(), 2),
        (Iterative(Gradient(0.25), steps=1), Detached(), 2),
    ],
)
def test_a_trained_y_is_a_parameter(
    monkeypatch: pytest.MonkeyPatch, solver: Solver, adjoint: Adjoint, told: int
) -> None:
    seen: list[Tensor] = []
    gather = lambda value: seen.append(value) or [value, value]  # noqa: E731
    check(monkeypatch, gather, torch.zeros(3), Pulled(), solver, adjoint)
    assert len(seen) == told


class Summed(Pulled):
    def objective(self, leader, y, batch):
        return distributed.summed(super().objective(leader, distributed.replicated(y), batch))


def test_a_pool_beside_an_objective_that_is_summed_is_refused_where_y_has_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The processes' losses differ there, and the gradient of each would reach all parts of q."""
    same: Gather = lambda value: [value, value]  # noqa: E731
    check(monkeypatch, same, torch.zeros(3), Summed(), adjoint=Detached())
    with pytest.raises(BilevelError, match=r"Summed\.objective is summed .* leave out the pool"):
        check(monkeypatch, same, torch.zeros(3), Summed())


def test_processes_with_samples_of_their_own_are_told_to_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BilevelError, match=r"sum objective and loss by distributed\.summed"):
        check(monkeypatch, lambda value: [value, value + 1], torch.zeros(3))


class Each(Pulled):
    def objective(self, leader, y, batch):
        return (y - leader.theta[:2]).square()


@pytest.mark.parametrize(
    ("follower", "y"), [(Each(), torch.zeros(2)), (Pulled(), torch.tensor([1, 2, 3]))]
)
def test_nothing_is_compared_where_there_is_no_shared_y_or_no_gradient(
    monkeypatch: pytest.MonkeyPatch, follower: FollowerProblem, y: Tensor
) -> None:
    check(monkeypatch, lambda _: pytest.fail("gathered"), y, follower)


@pytest.mark.parametrize("adjoint", [Detached(), Implicit()], ids=repr)
def test_rows_of_y_that_are_trained_belong_to_a_process(
    monkeypatch: pytest.MonkeyPatch, adjoint: Adjoint
) -> None:
    """Their gradients would be summed with those of other samples."""
    solver, same = Parametric(torch.zeros(2)), lambda value: [value, value]
    check(monkeypatch, same, torch.zeros(2), Each(), solver, adjoint)  # a pool of one process
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(BilevelError, match=r"Each\.objective is one value per sample.*warm_start"):
        check(monkeypatch, same, torch.zeros(2), Each(), solver, adjoint)


def test_a_share_is_that_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares that add up to 1 may still be those of another batch."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    check(monkeypatch, lambda samples: [samples, 2], torch.zeros(2), Each())
    told = r"share is 0\.5, and this process has 2 of the batch's 5 samples: some would count"
    with pytest.raises(BilevelError, match=told):
        check(monkeypatch, lambda samples: [samples, 3], torch.zeros(2), Each())


@pytest.mark.parametrize("kind", [distributed.SyncBatchNorm, nn.SyncBatchNorm])
def test_a_linear_system_of_all_samples_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]
) -> None:
    """As synchronised normalisation makes one: each process would end its own when it likes."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    gather: Gather = lambda value: [value, value]  # noqa: E731

    def check_in(mode: Mode, adjoint: Adjoint, part: nn.Module | None = None) -> None:
        solver = Iterative(Gradient(0.25), 1, leader_mode=mode)
        check(monkeypatch, gather, torch.zeros(2), Each(), solver, adjoint, part)

    check_in("eval", Implicit(), kind(2))
    check_in("train", Unrolled(), kind(2))
    check_in("train", Implicit(), nn.BatchNorm1d(2))
    with pytest.raises(BilevelError, match=r"Implicit\(\) solves the linear .* leader_mode=\"eval"):
        check_in("train", Implicit(), kind(2))


def test_an_objective_need_not_use_all_of_y(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Pulled):
        def objective(self, leader, y, batch):
            return (y["used"] - leader.theta).square().sum()

    y = {"unused": torch.zeros(2), "used": torch.zeros(3)}
    check(monkeypatch, lambda value: [value, value], y, Half())
    assert not any(leaf.requires_grad for leaf in y.values())


def test_the_check_leaves_no_trace() -> None:
    """Running statistics, dropout and random numbers are those of a game that is not checked."""

    class Fitted(Pulled):
        def __init__(self) -> None:
            self.norm = nn.BatchNorm2d(1)

        def init(self, batch):
            return torch.zeros(6, 1, 4, 4)

        def objective(self, leader, y, batch):
            return (leader.net(self.norm(batch + y)) ** 2).mean()

    class Net(Apart):
        def __init__(self) -> None:
            super().__init__()
            self.net = BatchNormNet(dropout=0.5)

        def loss(self, y, batch):
            return (self.net(batch + y) ** 2).mean()

    states = []
    for pool in (None, distributed.Pool()):
        torch.manual_seed(0)
        leader = Net()
        solver = Iterative(Gradient(0.1), steps=1, leader_mode="train")
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        follower = Fitted()
        game = Bilevel(leader, follower, solver, leader_opt=optimizer, adjoint=Detached())
        game.pool = pool
        game.step(torch.rand(6, 1, 4, 4))
        norm = {f"norm.{name}": value for name, value in follower.norm.state_dict().items()}
        states.append({**leader.state_dict(), **norm, "random": torch.get_rng_state()})
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_all_processes_decide_alike_by_the_gradient_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This one lies at one end; those at both ends are further apart than either from the first."""
    apart = torch.tensor([0.7e-3, 0.0, 0.0])
    found = iter([torch.zeros(3), apart])

    def gather(value: Tensor) -> list[Tensor]:
        step = next(found)
        return [value - step, value, value - 2 * step]

    check(monkeypatch, gather, torch.tensor([1.0, 1.5, 1.0]))


def test_gradients_that_the_batch_scales_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    same: Gather = lambda value: [value, value]  # noqa: E731
    for normalize in ("sample", "batch"):
        solver = Iterative(CNN(1, 0.1, form="two-layer", width=4, normalize=normalize), 1)
        solver.requires_grad_(False)
        if normalize == "sample":
            check(monkeypatch, same, torch.zeros(2), Each(), solver, Detached())
        else:
            with pytest.raises(BilevelError, match=r'process\'s samples: give .*"sample"'):
                check(monkeypatch, same, torch.zeros(2), Each(), solver, Detached())
