"""`Pool`: what is summed, and how precisely."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    Iterative,
    NonFiniteError,
    Schedule,
    Simultaneous,
    ZeroSum,
    distributed,
    pgm,
)
from bilevel.distributed import Pool
from bilevel.robustness import Batch
from bilevel.tree import Value
from bilevel.updates import CNN
from tests.problems import image_game


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a second process computed the same as this one."""
    monkeypatch.setattr("bilevel.distributed.pool.world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather", lambda own: [own, own])
    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat.mul_(2))


@pytest.mark.usefixtures("two")
def test_a_loss_of_half_precision_rounds_no_gradient() -> None:
    torch.manual_seed(0)
    loss = torch.tensor(0.5, dtype=torch.bfloat16)
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    gradients = [images, torch.rand(3, 2).T, torch.rand(()), torch.rand(2, 0)]
    expected = [2 * gradient for gradient in gradients]
    Pool().all_reduce([loss, *gradients])
    assert loss.item() == 1.0
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()], ids=repr)
@pytest.mark.usefixtures("two")
def test_two_processes_with_the_same_half_batches(schedule: Schedule) -> None:
    """Each adds half of the loss and of the gradients; a parameter that nothing reads has none."""
    leader, follower, batch = image_game()
    leader.unread = nn.Parameter(torch.ones(()))
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    alone = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
        schedule=schedule,
    )
    pooled = copy.deepcopy(alone)
    pooled.pool = Pool()
    assert pooled.pool.share == 0.5
    for _ in range(2):
        ours, theirs = pooled.step(batch), alone.step(batch)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    actual, expected = (game.trained_parameters() for game in (pooled, alone))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert pooled.leader.unread.grad is None


def test_a_pool_in_one_process_has_no_effect() -> None:
    leader, follower, batch = image_game()
    opt = torch.optim.SGD(leader.parameters(), lr=0.1)
    alone = Bilevel(leader, follower, pgm(0.05, 2), leader_opt=opt)
    pooled = copy.deepcopy(alone)
    pooled.pool = Pool()
    assert torch.equal(pooled.step(batch)["loss"], alone.step(batch)["loss"])
    actual, expected = (game.trained_parameters() for game in (pooled, alone))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_pooled_loss_that_is_not_finite_moves_nobody() -> None:
    class Broken(ZeroSum):
        def loss(self, y: Value, batch: Batch) -> torch.Tensor:
            return super().loss(y, batch) * torch.nan

    _, follower, batch = image_game()
    leader = Broken(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), follower)
    opt = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=opt, adjoint=Detached())
    game.pool = Pool()
    before = copy.deepcopy(leader.state_dict())
    with pytest.raises(NonFiniteError, match="step 0: the leader's loss is nan"):
        game.step(batch)
    torch.testing.assert_close(leader.state_dict(), before, rtol=0, atol=0)


def test_a_pool_before_the_processes_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BilevelError, match=r"2 processes were started .*distributed\.join\(\)"):
        Pool()


def learned_game() -> tuple[Bilevel, Batch]:
    """With a pool, whose solver fails if it is asked for an answer."""
    leader, follower, batch = image_game()
    leader.model.add_module("norm", nn.BatchNorm1d(2))
    leader.register_buffer("data", torch.ones(2))
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    vars(solver)["answer"] = lambda oracle: pytest.fail("solved")
    opt, opt_phi = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (leader, solver))
    game = Bilevel(leader, follower, solver, leader_opt=opt, solver_opt=opt_phi)
    game.pool = Pool()
    return game, batch


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"solver.update.network.0.weight": ((4, 2, 3, 3), "0")}, "solver.update.network.0.weight"),
        ({"leader.more": ((2,), "0"), "leader.most": ((2,), "1")}, "leader.more and 1 other"),
        ({"leader.model.norm.running_var": ((2,), "0")}, "leader.model.norm.running_var"),
    ],
)
def test_processes_with_other_players_are_refused_before_they_solve(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], told: str
) -> None:
    """Of another seed, or another architecture: their gradients would be summed all the same."""
    (game, batch), seen = learned_game(), set()

    def gather(own: Any) -> list[Any]:
        if isinstance(own, float):
            return [0.5, 0.5]
        seen.update(own)
        return [own, {**own, **change}]

    monkeypatch.setattr(distributed, "all_gather", gather)
    with pytest.raises(BilevelError, match=f"processes 0 and 1 differ in {told}.*: .*one seed"):
        game.step(batch)
    assert {"leader.model.norm.weight", "leader.model.norm.running_var"} <= seen
    assert "leader.data" not in seen  # perhaps this process's samples


@pytest.mark.parametrize("shares", [[1.0, 1.0], [0.5, 0.4]])
def test_shares_that_are_not_those_of_one_batch(
    monkeypatch: pytest.MonkeyPatch, shares: list[float]
) -> None:
    game, batch = learned_game()
    monkeypatch.setattr(distributed, "all_gather", lambda own: shares)
    with pytest.raises(BilevelError, match=r"shares .* are .*, which do not add up to 1: .*set"):
        game.step(batch)


@pytest.mark.parametrize("player", ["leader", "solver"])
def test_an_optimizer_that_steps_before_gradients_are_summed_is_refused(player: str) -> None:
    game, batch = learned_game()
    parameter = next(getattr(game, player).parameters())
    parameter.register_post_accumulate_grad_hook(lambda _: None)
    with pytest.raises(BilevelError, match=f"parameter of the {player} has a hook .*{player}_opt"):
        game.step(batch)


def test_a_sparse_gradient_is_refused(two: None) -> None:
    table = nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(BilevelError, match=r"a sparse gradient.*: build .* sparse=False"):
        Pool().all_reduce_gradients(torch.ones(()), [table.weight])
