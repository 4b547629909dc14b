"""What the corrected schedules refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Bilevel,
    BilevelError,
    CompetitiveGradient,
    Consensus,
    FollowerProblem,
    Parametric,
    Schedule,
    SymplecticAdjustment,
    Unrolled,
    ZeroSum,
    games,
    pgm,
)
from bilevel.distributed import Pool
from bilevel.schedules import Corrected
from tests.problems import image_game
from tests.schedules.general import CORRECTIONS, F64, descending, general_game


def test_what_a_correction_of_ones_own_returns_is_checked() -> None:
    class Parts(Corrected):
        def correct(self, field, game, metrics):
            return field.split(field.value)

    with pytest.raises(BilevelError, match=r"Parts.correct returned a dict.* field.flat"):
        games.begin(games.bilinear(), 1.0, 0.5, lr=0.1, schedule=Parts()).step(None)


class Rows(FollowerProblem):
    sense = "max"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(3)

    def objective(self, leader: ZeroSum, y: Tensor, batch: Tensor) -> Tensor:
        return (leader.model(batch) * y).sum().sin()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_sparse_gradients(name: str) -> None:
    follower, solver = Rows(), Parametric(torch.ones(3))
    leader = ZeroSum(nn.Embedding(5, 3, sparse=True), follower)
    game = descending(leader, follower, solver, CORRECTIONS[name]())
    with pytest.raises(BilevelError, match="sparse=False"):
        game.step(torch.arange(2))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_parts_that_do_not_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, batch = CORRECTIONS[name](), torch.ones(3, 2, dtype=F64)
    with pytest.raises(BilevelError, match=r"take Detached\(\)"):
        general_game(schedule, adjoint=Unrolled())
    leader, follower, _ = image_game()
    sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
    with pytest.raises(BilevelError, match="one is not trained"):
        Bilevel(leader, follower, pgm(0.1, 2), leader_opt=sgd, schedule=schedule)
    game = general_game(schedule)
    game.leader_opt = torch.optim.LBFGS([game.leader.x], max_iter=3)
    with pytest.raises(BilevelError, match="LBFGS asks for another"):
        game.step(batch)
    game = general_game(schedule)
    game.pool = Pool()
    game.step(batch)  # there is one process
    monkeypatch.setattr("bilevel.schedules.corrected.world_size", lambda: 2)
    with pytest.raises(BilevelError, match="over processes"):
        game.step(batch)


class Attending(FollowerProblem):
    sense = "max"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(())

    def objective(self, leader: ZeroSum, y: Tensor, batch: Tensor) -> Tensor:
        q = leader.model(batch).view(1, 1, 4, 4)
        return nn.functional.scaled_dot_product_attention(q, y + q, q).mean()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_an_operation_without_second_derivative(name: str) -> None:
    follower, solver = Attending(), Parametric(torch.ones(()))
    leader = ZeroSum(nn.Linear(4, 4), follower)
    game = descending(leader, follower, solver, CORRECTIONS[name]())
    with pytest.raises(BilevelError, match=r"sdpa_kernel.*schedule \(Extragradient\)"):
        game.step(torch.ones(4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Consensus(0.0), "gamma is 0.0"),
        (lambda: SymplecticAdjustment(-1.0), "strength is -1.0"),
        (lambda: CompetitiveGradient(0), "max_steps is 0"),
        (lambda: CompetitiveGradient(tolerance=0.0), "tolerance is 0.0"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        make()


class Aside(FollowerProblem):
    """Its objective reads neither player."""

    sense = "max"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2)

    def objective(self, leader: ZeroSum, y: Tensor, batch: Tensor) -> Tensor:
        return batch.sum()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_loss_of_neither_player(name: str) -> None:
    follower, solver = Aside(), Parametric(torch.ones(2))
    leader = ZeroSum(nn.Linear(2, 1), follower)
    game = descending(leader, follower, solver, CORRECTIONS[name]())
    with pytest.raises(BilevelError, match="the leader's loss does not depend"):
        game.step(torch.ones(2, requires_grad=True))
