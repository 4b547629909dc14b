"""A game's state: it comes back whole, or not at all."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Detached,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Lookahead,
    Optimistic,
    Parametric,
    Penalty,
    Simultaneous,
    Solver,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.problem import networks_of
from bilevel.updates import CoordinateRNN, Gradient
from tests.problems import Saddle, Scalar, image_game, images


def sgd(module: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr)


@pytest.mark.parametrize("written", [Simultaneous(), Lookahead()], ids=repr)
def test_a_state_of_another_schedule_changes_nothing(written) -> None:
    def game(schedule) -> Bilevel:
        leader, follower, _ = image_game()
        return Bilevel(leader, follower, pgm(0.1, 1), leader_opt=sgd(leader), schedule=schedule)

    source, target = game(written), game(Optimistic())
    source.step(images())
    target.step(images())
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(BilevelError, match="the schedule has state"):
        target.load_state_dict(source.state_dict())
    for name, value in before["leader"].items():
        assert torch.equal(target.leader.state_dict()[name], value), name
    with pytest.raises(BilevelError, match="the schedule has state"):
        source.load_state_dict(before)


def test_a_state_of_another_adjoint_is_refused_in_both_directions() -> None:
    def game(adjoint) -> Bilevel:
        leader, follower, _ = image_game()
        return Bilevel(leader, follower, pgm(0.1, 1), leader_opt=sgd(leader), adjoint=adjoint)

    plain, implicit = game(Detached()), game(Implicit())
    for source, target in ((plain, implicit), (implicit, plain)):
        with pytest.raises(BilevelError, match="the adjoint has state"):
            target.load_state_dict(source.state_dict())


def test_a_state_with_another_optimizer_changes_nothing() -> None:
    def game(groups: int) -> Bilevel:
        leader, follower, _ = image_game()
        parameters = list(leader.parameters())
        parts = [parameters[:2], parameters[2:]] if groups == 2 else [parameters]
        optimizer = torch.optim.SGD([{"params": part} for part in parts], lr=0.1)
        return Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)

    source, target = game(2), game(1)
    before = copy.deepcopy(target.leader.state_dict())
    with pytest.raises(BilevelError, match="does not fit"):
        target.load_state_dict(source.state_dict())
    for name, value in before.items():
        assert torch.equal(target.leader.state_dict()[name], value), name


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.1)


@pytest.mark.parametrize(("written", "read"), [(sgd, adam), (adam, sgd)], ids=["sgd", "adam"])
def test_a_state_of_an_optimizer_of_another_kind(written, read) -> None:
    """Also where it has no tensors yet."""

    def game(optimizer) -> Bilevel:
        saddle = Saddle()
        leader, solver = ZeroSum(Scalar(1.0), saddle), Parametric(torch.zeros(()).double())
        both = {"leader_opt": optimizer(leader), "solver_opt": read(solver)}
        return Bilevel(leader, saddle, solver, **both)

    target = game(read)
    with pytest.raises(BilevelError, match=r"does not fit .*the leader_opt of the state has no"):
        target.load_state_dict(game(written).state_dict())
    target.step(None)


def test_training_does_not_change_a_state_that_was_loaded() -> None:
    """To which a run may have to go back a second time."""
    leader, follower, batch = image_game()
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=adam(leader))
    game.step(batch)
    state = copy.deepcopy(game.state_dict())
    ends = []
    for _ in range(2):
        game.load_state_dict(state)
        for _ in range(3):
            game.step(batch)
        ends.append(torch.cat([p.detach().flatten() for p in leader.parameters()]))
    assert torch.equal(*ends)


def test_a_leader_without_parameters_comes_back_too() -> None:
    """Its optimizer moves something else: a step of evolution on a buffer, say."""

    class Still:
        def step(self, closure):
            closure()

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    follower = Saddle()
    leader = ZeroSum(nn.Module(), follower)
    leader.model.register_buffer("x", torch.tensor(2.0).double())
    solver = Parametric(torch.tensor(0.0).double())
    optimizer = sgd(solver)
    game = Bilevel(leader, follower, solver, leader_opt=Still(), solver_opt=optimizer)
    game.step(None)
    state = copy.deepcopy(game.state_dict())
    game.step(None)
    game.load_state_dict(state)
    assert solver.y.item() == pytest.approx(0.2)


def test_a_state_of_a_learned_update_with_another_scale() -> None:
    def game(scale: float) -> Bilevel:
        leader, follower, _ = image_game()
        solver = Iterative(CoordinateRNN(scale, hidden=2), 1)
        return Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))

    with pytest.raises(BilevelError, match=r"the saved CoordinateRNN has scale=0\.1, this one 1:"):
        game(1.0).load_state_dict(game(0.1).state_dict())


def test_a_state_without_its_number_of_steps_changes_nothing() -> None:
    leader, follower, _ = image_game()
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=sgd(leader))
    game.step(images())
    state = copy.deepcopy(game.state_dict())
    del state["steps"]
    game.step(images())
    before = copy.deepcopy(leader.state_dict())
    with pytest.raises(BilevelError, match="the state has no 'steps'"):
        game.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in leader.state_dict().items())
    assert game.steps == 2


def test_a_state_from_before_the_rates_were_scheduled() -> None:
    leader, follower, _ = image_game()
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=sgd(leader, lr=0.5))
    state = copy.deepcopy(game.state_dict())
    torch.optim.lr_scheduler.StepLR(game.leader_opt, 1)
    game.leader_opt.param_groups[0]["lr"] = 0.1
    game.load_state_dict(state)
    assert game.leader_opt.param_groups[0]["lr"] == 0.5


class Discriminating(FollowerProblem):
    """A discriminator whose batch normalisation runs in training mode while it is solved."""

    sense = "min"

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()

    def init(self, batch):
        return {name: p.detach() for name, p in self.network.named_parameters()}

    def logits(self, leader, y, batch):
        return functional_call(self.network, y, (leader.w * batch,))

    def objective(self, leader, y, batch):
        decay = sum(leaf.square().sum() for leaf in y.values())
        return self.logits(leader, y, batch).exp().mean() + decay


class Fooling(LeaderProblem):
    def __init__(self, follower: Discriminating) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))
        object.__setattr__(self, "follower", follower)

    def loss(self, y, batch):
        return self.follower.logits(self, y, batch).mean()


class Registered(Discriminating, nn.Module):
    """A module itself, with the network as a part."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        super().__init__()


def discriminating_game(adjoint: Adjoint, kind: type[Discriminating] = Discriminating) -> Bilevel:
    follower = kind()
    leader = Fooling(follower)
    solver = Iterative(Gradient(0.01), 4, warm_start=not isinstance(adjoint, Penalty))
    return Bilevel(leader, follower, solver, leader_opt=sgd(leader), adjoint=adjoint)


ADJOINTS = (Detached(), Unrolled(recompute=2), Implicit(max_steps=2), Penalty(10.0), Forward())


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_running_statistics_of_the_follower_are_those_of_its_solves(adjoint) -> None:
    """Four steps and the leader's loss; a backward pass that computes again moves none."""
    game = discriminating_game(adjoint)
    game.step(torch.randn(8, 3, dtype=torch.float64))
    assert game.follower.network[1].num_batches_tracked.item() == 5


@pytest.mark.parametrize(
    ("kind", "name"), [(Discriminating, "follower.network"), (Registered, "follower")]
)
def test_running_statistics_of_the_follower_come_back(kind, name) -> None:
    batches = torch.randn(4, 8, 3, dtype=torch.float64)
    game, other = (discriminating_game(Detached(), kind) for _ in range(2))
    assert [part for part in game.state_dict() if part.startswith("follower")] == [name]
    for batch in batches[:2]:
        game.step(batch)
    other.load_state_dict(copy.deepcopy(game.state_dict()))
    for batch in batches[2:]:
        assert torch.equal(game.step(batch)["loss"], other.step(batch)["loss"])
    for one, two in zip(*(g.follower.network.buffers() for g in (game, other)), strict=True):
        assert torch.equal(one, two)


class Ranking(Discriminating):
    """Holds two networks of the same form, in either order."""

    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, nn.Linear(1, 1))


def ranking_game(*names: str) -> Bilevel:
    follower = Ranking(*names)
    leader = Fooling(follower)
    solver = Iterative(Gradient(0.1), 1)
    return Bilevel(leader, follower, solver, leader_opt=sgd(leader), adjoint=Detached())


def test_networks_of_the_follower_are_known_by_their_names() -> None:
    game, other = ranking_game("teacher", "critic"), ranking_game("critic", "teacher")
    other.load_state_dict(game.state_dict())
    for name in ("teacher", "critic"):
        own, loaded = (getattr(one.follower, name).weight for one in (game, other))
        assert torch.equal(own, loaded)


def test_a_network_that_would_not_be_loaded_is_named() -> None:
    state = ranking_game("teacher", "critic").state_dict()
    with pytest.raises(BilevelError, match=r"has a network 'follower.critic', which this game's"):
        ranking_game("teacher").load_state_dict(state)
    with pytest.raises(BilevelError, match=r"the state has no 'follower.rival'"):
        ranking_game("teacher", "critic", "rival").load_state_dict(state)


def test_a_network_in_a_slot_is_a_network() -> None:
    @dataclass(slots=True)
    class Slotted(Discriminating):
        other: nn.Module

    network, other = nn.Linear(1, 1), nn.BatchNorm1d(2)
    follower = Slotted(other)
    follower.network = network
    assert set(networks_of(follower)) == {network, other}


def test_a_single_slot_may_be_named_without_a_tuple() -> None:
    class Alone:
        __slots__ = "network"

    alone = Alone()
    alone.network = nn.Linear(1, 1)
    assert networks_of(alone) == [alone.network]


def test_the_state_of_a_follower_with_another_network_changes_nothing() -> None:
    game, other = (discriminating_game(Detached()) for _ in range(2))
    other.follower.network = nn.Linear(3, 1).double()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(BilevelError, match=r"saved follower\.network is of another"):
        other.load_state_dict(game.state_dict())
    assert torch.equal(other.leader.w, before["leader"]["w"])


def test_a_network_of_a_player_that_the_follower_holds_is_saved_once() -> None:
    leader, follower, _ = image_game()
    follower.features, follower.critic = leader.model, nn.Linear(1, 1)
    solver = Parametric(follower.critic)
    game = Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))
    assert not [name for name in game.state_dict() if name.startswith("follower")]


def test_what_a_user_has_saved_beside_the_state_is_left_alone() -> None:
    game = discriminating_game(Detached())
    game.load_state_dict({**game.state_dict(), "epoch": 3})


def test_what_a_solver_keeps_beside_its_parameters_is_of_any_shape() -> None:
    class Keeps(Solver):
        kept = torch.zeros(())

        def answer(self, oracle):
            self.kept = oracle.init()
            return self.kept

        def get_extra_state(self):
            return self.kept

        def set_extra_state(self, state):
            self.kept = state

    leader, follower, batch = image_game()
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game, fresh = (Bilevel(leader, follower, Keeps(), leader_opt=optimizer) for _ in range(2))
    game.step(batch)
    fresh.load_state_dict(game.state_dict())
    assert torch.equal(fresh.solver.kept, game.solver.kept)
