"""`Bilevel`: each player moves its own parameters along its own gradient, and nobody else's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    Extragradient,
    FollowerProblem,
    Implicit,
    Iterative,
    Lookahead,
    NonFiniteError,
    Optimistic,
    Parametric,
    Simultaneous,
    Update,
    ZeroSum,
    pgm,
)
from bilevel.updates import CNN
from tests.problems import BatchNormNet, Saddle, Scalar, image_game, images

SCHEDULES = [
    Simultaneous(),
    Alternating(),
    Alternating(first="follower"),
    Extragradient(),
    Optimistic(),
    Lookahead(),
]


def sgd(module: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr)


def make(leader, follower, solver, **settings) -> Bilevel:
    """A game in which both players take gradient steps."""
    optimizers = {"leader_opt": sgd(leader), "solver_opt": sgd(solver)}
    return Bilevel(leader, follower, solver, **{**optimizers, **settings})


class Divergence(FollowerProblem):
    """max over δ of the divergence from the clean answer, as in TRADES."""

    sense = "max"

    def init(self, batch):
        return 1e-3 * torch.randn_like(batch.x)

    def context(self, y, batch):
        return batch.x + y

    def objective(self, leader, y, batch):
        clean, moved = (leader.model(x).log_softmax(1) for x in (batch.x, batch.x + y))
        return F.kl_div(moved, clean, log_target=True, reduction="none").sum(1)


class Trades(ZeroSum):
    def loss(self, y, batch):
        return F.cross_entropy(self.model(batch.x + y), batch.y)


def test_a_zero_sum_leader_with_a_loss_of_its_own_is_not_zero_sum() -> None:
    follower = Divergence()
    leader = Trades(BatchNormNet(), follower)
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    with pytest.raises(BilevelError, match="Trades is not zero-sum with Divergence"):
        Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=sgd(leader, 0.0),
        solver_opt=sgd(solver, 0.0),
        adjoint=Detached(),
    )
    metrics = game.step(images())
    assert metrics["objective_after"] != metrics["loss"]
    assert metrics["objective_after"] > 0  # a divergence


def test_nor_is_one_whose_loss_is_an_attribute() -> None:
    follower = Saddle()
    leader = ZeroSum(Scalar(1.0), follower)
    leader.loss = lambda y, batch: (y - 3) ** 2 + leader.model.x * y
    solver = Parametric(torch.tensor(0.5).double())
    with pytest.raises(BilevelError, match="ZeroSum is not zero-sum with Saddle"):
        Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))


def test_but_one_whose_loss_is_compiled_is() -> None:
    follower = Saddle()
    leader, solver = ZeroSum(Scalar(1.0), follower), Parametric(torch.tensor(0.5).double())
    leader.loss = torch.compile(leader.loss, backend="eager")
    game = Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))
    assert game.step(None)["objective_after"] == 0.5
    assert game.zero_sum


def test_the_objective_of_a_minimising_follower_is_told_with_its_own_sign() -> None:
    class Low(Saddle):
        sense = "min"

    leader, solver = ZeroSum(Scalar(1.0), Saddle()), Parametric(torch.tensor(0.5).double())
    game = make(leader, Low(), solver, adjoint=Detached())  # each minimises xy
    assert game.step(None)["objective_after"] == 0.5
    solver.requires_grad_(False)
    assert "objective_after" not in game.step(None)  # of a solver that is not trained


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()], ids=repr)
def test_the_leader_of_a_minimising_follower_maximises(schedule) -> None:
    class Low(Saddle):
        sense = "min"

    follower = Low()
    game = make(
        ZeroSum(Scalar(1.0), follower),
        follower,
        Parametric(torch.tensor(0.5).double()),
        schedule=schedule,
    )
    metrics = game.step(None)
    assert (metrics["loss"].item(), metrics["objective_after"].item()) == (-0.5, 0.5)
    x, y = (player.item() for player in game.trained_parameters().values())
    shown = 1.0 if isinstance(schedule, Simultaneous) else x
    assert (x, y) == pytest.approx((1.05, 0.5 - 0.1 * shown))


def test_a_sharded_network_is_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        leader, follower, _ = image_game()
        fully_shard(leader.model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        with pytest.raises(BilevelError, match=r"leader's .* is sharded \(fully_shard\): .*Pool"):
            Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)
    finally:
        dist.destroy_process_group()


def test_a_parameter_of_both_players_is_refused() -> None:
    leader, follower, _ = image_game()

    class Reads(Update):
        def __init__(self) -> None:
            super().__init__()
            self.model = leader.model

        def forward(self, y, gradient, context, state):
            return y + self.model(context).mean(), state

    solver = Iterative(Reads(), 1)
    with pytest.raises(BilevelError, match=r"update\.model\.layers\.0\.weight is the leader's too"):
        Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_what_belongs_to_no_player_is_left_alone(schedule) -> None:
    """A teacher inside the follower, and the batch, gather no gradients; nor is it trained."""

    class Taught(FollowerProblem, nn.Module):
        sense = "max"

        def __init__(self) -> None:
            super().__init__()
            self.teacher = BatchNormNet()

        def init(self, batch):
            return torch.zeros_like(batch.x)

        def objective(self, leader, y, batch):
            answers = leader.model(batch.x + y), self.teacher(batch.x + y)
            return (answers[0] - answers[1]).square().sum(1)

    follower = Taught()
    leader = ZeroSum(BatchNormNet(), follower)
    assert len(list(leader.parameters())) == len(list(leader.model.parameters()))
    solver = Iterative(CNN(1, 0.1, form="two-layer", inputs=("gradient",), width=4), 1)
    game = make(leader, follower, solver, schedule=schedule)
    batch = images()
    batch.x.requires_grad_()
    before = [p.detach().clone() for p in follower.teacher.parameters()]
    game.step(batch)
    assert batch.x.grad is None
    for parameter, old in zip(follower.teacher.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_player_that_is_frozen_stands_still_while_the_other_plays(schedule) -> None:
    leader, follower, batch = image_game()
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4, gradient_skip=1.0), 1)
    game = make(leader, follower, solver, schedule=schedule)
    game.step(batch)
    for frozen_one, other in ((solver, leader), (leader, solver)):
        frozen_one.requires_grad_(False)
        before = copy.deepcopy([list(player.parameters()) for player in (frozen_one, other)])
        for _ in range(6):
            game.step(batch)
        still, moved = (
            [torch.equal(p, q) for p, q in zip(player.parameters(), old, strict=True)]
            for player, old in zip((frozen_one, other), before, strict=True)
        )
        assert all(still)
        assert not all(moved)
        frozen_one.requires_grad_(True)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_leader_that_is_not_trained_is_met_as_the_solver_meets_it(schedule) -> None:
    """Its running statistics stay, and the follower's gradient is that of the evaluation mode."""
    leader, follower, batch = image_game()
    leader.requires_grad_(False)
    solver, evaluated = Parametric(torch.full_like(batch.x, 0.01)), copy.deepcopy(leader).eval()
    optimizer = torch.optim.SGD(solver.parameters(), lr=0.1)
    game = Bilevel(
        leader, follower, solver, leader_opt=None, solver_opt=optimizer, schedule=Simultaneous()
    )
    before = copy.deepcopy(leader.state_dict())
    y = follower.project(solver.y.detach(), batch).requires_grad_()
    (slope,) = torch.autograd.grad(follower.gain(evaluated, y, batch).mean(), y)
    game.step(batch)
    torch.testing.assert_close(solver.y, follower.project(y + 0.1 * slope, batch))
    game.schedule = schedule
    game.step(batch)
    assert leader.training
    for name, value in leader.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_parameter_that_no_answer_reads_stands_still(schedule) -> None:
    leader, follower, batch = image_game()
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    solver.unread = nn.Parameter(torch.ones(()))
    make(leader, follower, solver, schedule=schedule).step(batch)
    assert solver.unread.item() == 1.0


def test_a_look_ahead_at_what_is_not_finite_is_no_move() -> None:
    class Steep(Saddle):
        def objective(self, leader, y, batch):
            return super().objective(leader, y, batch) + leader.model.x.cosh().exp()

    follower = Steep()
    leader, solver = ZeroSum(Scalar(1.0), follower), Parametric(torch.tensor(0.0).double())
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=1e3),
        solver_opt=sgd(solver),
        schedule=Extragradient(),
    )
    with pytest.raises(NonFiniteError):
        game.step(None)
    assert leader.model.x.item() == 1.0
    assert solver.y.item() == 0.0


def test_an_update_of_the_solver_that_the_adjoint_reads_is_the_same_one() -> None:
    """Copied with the adjoint, it would stay untrained."""
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    leader, follower, _ = image_game()
    game = make(leader, follower, solver, adjoint=Implicit(fixed_point=solver.update))
    assert game.adjoint.fixed_point is solver.update
