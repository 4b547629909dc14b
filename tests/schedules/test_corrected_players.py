"""Corrected schedules: modes, frozen parameters, losses that fail, optimizers without rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Bilevel,
    BilevelError,
    CompetitiveGradient,
    Consensus,
    Detached,
    FollowerProblem,
    LeaderProblem,
    NonFiniteError,
    Parametric,
    Simultaneous,
    SymplecticAdjustment,
    ZeroSum,
    games,
)
from tests.schedules.critics import Discriminator, critic_game, state
from tests.schedules.general import CORRECTIONS, F64, Chooser, Reply, descending, general_game


class Normed(LeaderProblem):
    """Its statistics move with each batch that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).double()

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return self.net(batch + y).square().mean()


class Shifting(FollowerProblem):
    sense = "max"

    def __init__(self) -> None:
        self.modes: list[bool] = []

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2, dtype=F64)

    def objective(self, leader: Normed, y: Tensor, batch: Tensor) -> Tensor:
        self.modes.append(leader.net.training)
        return leader.net(batch * y.exp()).mean() - y.square().sum()


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_follower_meets_the_leader_in_the_mode_of_the_solve(name: str, mode) -> None:
    """And the leader's statistics move with its own loss alone."""
    leader, solver = Normed(), Parametric(torch.ones(2, dtype=F64), leader_mode=mode)
    game = descending(leader, Shifting(), solver, CORRECTIONS[name]())
    game.step(torch.randn(8, 2, dtype=F64))
    assert set(game.follower.modes) == {mode == "train"}
    assert leader.net[0].num_batches_tracked == 1


@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_follower_meets_the_statistics_of_before_the_leaders_loss(name: str) -> None:
    """As in simultaneous steps."""
    found, batch = [], torch.randn(8, 2, dtype=F64)
    for schedule in (Simultaneous(), CORRECTIONS[name]()):
        torch.manual_seed(0)
        leader, solver = Normed(), Parametric(torch.ones(2, dtype=F64))
        game = descending(leader, Shifting(), solver, schedule)
        found.append(game.step(batch)["objective_after"])
    torch.testing.assert_close(*found)


class Offset(Chooser):
    """A parameter of which the gradient is a constant, so that nothing bends by it."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(1.0, dtype=F64))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return super().loss(y, batch) + 2 * self.offset


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_parameter_that_the_loss_is_linear_in_takes_its_own_step(name: str) -> None:
    leader, solver = Offset(), Parametric(torch.tensor([0.4, -0.2], dtype=F64))
    game = descending(leader, Reply(), solver, CORRECTIONS[name]())
    game.step(torch.ones(3, 2, dtype=F64))
    assert leader.offset.item() == pytest.approx(1 - 0.1 * 2)


@pytest.mark.parametrize("schedule", [SymplecticAdjustment(), CompetitiveGradient()], ids=repr)
def test_against_a_frozen_leader_nothing_is_corrected(schedule) -> None:
    """As while the solver is trained alone, by an optimizer that stays."""
    games_of_two = [
        critic_game(kind, torch.optim.SGD, lr=0.1) for kind in (schedule, Simultaneous())
    ]
    for game in games_of_two:
        game.leader.requires_grad_(False)
        game.step(torch.ones(8, 4))
    torch.testing.assert_close(*map(state, games_of_two))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_leader_that_is_not_trained_is_refused(name: str) -> None:
    leader, solver = Chooser().requires_grad_(False), Parametric(torch.zeros(2, dtype=F64))
    with pytest.raises(BilevelError, match="of two players, of which one is not trained"):
        Bilevel(
            leader,
            Reply(),
            solver,
            leader_opt=None,
            solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
            adjoint=Detached(),
            schedule=CORRECTIONS[name](),
        )


class Rateless(torch.optim.SGD):
    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.1)
        del self.param_groups[0]["lr"]


class Groupless:
    """An optimizer of one's own."""

    def step(self, closure) -> None:
        closure()


@pytest.mark.parametrize("rateless", ["leader_opt", "solver_opt"])
def test_rates_of_both_players_are_asked_for(rateless: str) -> None:
    optimizer = Groupless() if rateless == "leader_opt" else None
    leader, solver = Chooser(), Parametric(torch.zeros(2, dtype=F64))
    opts = {
        "leader_opt": torch.optim.SGD(leader.parameters(), lr=0.1),
        "solver_opt": torch.optim.SGD(solver.parameters(), lr=0.1),
        rateless: optimizer or Rateless(solver.parameters()),
    }
    with pytest.raises(BilevelError, match=r"(Groupless|Rateless) has none"):
        Bilevel(leader, Reply(), solver, **opts, adjoint=Detached(), schedule=CompetitiveGradient())


class Broken(Chooser):
    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return super().loss(y, batch) * torch.nan


class Breaking(Reply):
    def objective(self, leader: Chooser, y: Tensor, batch: Tensor) -> Tensor:
        return super().objective(leader, y, batch) * torch.inf


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_loss_that_is_not_finite_moves_nobody(name: str) -> None:
    for part in ("leader", "follower"):
        leader, solver = (
            Broken() if part == "leader" else Chooser(),
            Parametric(torch.ones(2, dtype=F64)),
        )
        game = Bilevel(
            leader,
            Breaking() if part == "follower" else Reply(),
            solver,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
            solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
            adjoint=Detached(),
            schedule=CORRECTIONS[name](),
        )
        before = state(game)
        with pytest.raises(NonFiniteError, match=f"step 0: the {part}'s "):
            game.step(torch.ones(3, 2, dtype=F64))
        assert all(map(torch.equal, state(game), before))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_loss_of_more_than_one_number_is_refused(name: str) -> None:
    class Rows(Chooser):
        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            return super().loss(y, batch) * torch.ones(3, dtype=F64)

    leader, solver = Rows(), Parametric(torch.ones(2, dtype=F64))
    game = descending(leader, Reply(), solver, CORRECTIONS[name]())
    with pytest.raises(BilevelError, match=r"the leader's loss has shape \(3,\)"):
        game.step(torch.ones(3, 2, dtype=F64))


class Wide(Discriminator):
    """A part of its y is not read."""

    def init(self, batch: Tensor) -> dict[str, Tensor]:
        return {**super().init(batch), "aside": torch.zeros(2)}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_weights_that_the_objective_does_not_read_do_not_decay(name: str) -> None:
    follower = Wide()
    leader = ZeroSum(nn.Linear(4, 3), follower)
    y = {"weight": torch.ones(2, 3), "bias": torch.ones(2), "aside": torch.ones(2)}
    solver = Parametric(y)
    decaying = torch.optim.SGD(solver.parameters(), lr=0.1, weight_decay=0.5)
    descending(leader, follower, solver, CORRECTIONS[name](), solver_opt=decaying).step(
        torch.ones(8, 4)
    )
    assert torch.equal(solver.y["aside"], y["aside"])
    assert not torch.equal(solver.y["bias"], y["bias"])


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_zero_sum_game_is_evaluated_as_often_as_in_simultaneous_steps(name: str) -> None:
    calls: list[list[Tensor]] = []
    for schedule in (CORRECTIONS[name](), Simultaneous()):
        game, seen = critic_game(schedule, torch.optim.SGD, lr=0.1), []
        game.follower.objective = partial(counted, seen, game.follower.objective)
        game.step(torch.ones(8, 4))
        calls.append(seen)
    assert len(calls[0]) == len(calls[1])


def counted(seen: list[Tensor], objective: Callable[..., Tensor], *given: object) -> Tensor:
    seen.append(objective(*given))
    return seen[-1]


def test_the_system_is_solved_to_rounding_of_float32_unless_told() -> None:
    matrix = torch.randn(6, 6, dtype=F64)
    play = games.begin(games.Bilinear(matrix), 1.0, 0.5, lr=1.0, schedule=CompetitiveGradient())
    assert play.step(None)["residual"].item() <= 1e-6


def test_the_adjustment_of_a_rotation_is_that_of_consensus() -> None:
    ends = [
        games.trajectory(games.begin(games.bilinear(), 1.0, 0.5, lr=0.1, schedule=one), 1)[-1]
        for one in (SymplecticAdjustment(), Consensus(1.0))
    ]
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_an_objective_that_reads_the_leader_alone_is_refused(name: str) -> None:
    class Deaf(Reply):
        def objective(self, leader: Chooser, y: Tensor, batch: Tensor) -> Tensor:
            return leader.x.sum()

    leader, solver = Chooser(), Parametric(torch.ones(2, dtype=F64))
    game = descending(leader, Deaf(), solver, CORRECTIONS[name]())
    with pytest.raises(BilevelError, match="the follower's objective does not depend on the par"):
        game.step(torch.ones(3, 2, dtype=F64))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_what_is_frozen_between_two_steps_rests(name: str) -> None:
    """Though its optimizer still finds the gradient of the last step, unless that is cleared."""
    game = critic_game(CORRECTIONS[name](), torch.optim.SGD, lr=0.1)
    game.step(torch.ones(8, 4))
    frozen = game.leader.model.bias, game.solver.y["bias"]
    before = [parameter.requires_grad_(False).clone() for parameter in frozen]
    game.step(torch.ones(8, 4))
    assert all(map(torch.equal, frozen, before))


def test_at_an_equilibrium_the_system_is_solved() -> None:
    play = games.begin(games.bilinear(), 0.0, 0.0, lr=0.1, schedule=CompetitiveGradient())
    assert play.step(None)["residual"] == 0


@pytest.mark.parametrize("name", CORRECTIONS)
def test_metrics_hold_no_graph(name: str) -> None:
    metrics = general_game(CORRECTIONS[name]()).step(torch.ones(3, 2, dtype=F64))
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.filterwarnings("ignore:solver_opt does not have the solver's y")
@pytest.mark.parametrize("name", CORRECTIONS)
def test_what_no_optimizer_moves_rests(name: str) -> None:
    game = general_game(CORRECTIONS[name]())
    game.solver_opt.param_groups.clear()
    before = game.leader.x.detach().clone(), game.solver.y.detach().clone()
    game.step(torch.ones(3, 2, dtype=F64))
    assert torch.equal(game.solver.y, before[1])
    assert not torch.equal(game.leader.x, before[0])


@pytest.mark.filterwarnings("ignore:solver_opt does not have the solver's y")
def test_what_rests_is_not_expected_to_move_by_the_other_player() -> None:
    """Whose competitive step is then its gradient step."""
    moved = []
    for schedule in (CORRECTIONS["competitive"](), Simultaneous()):
        game = general_game(schedule)
        game.solver_opt.param_groups.clear()
        game.step(torch.ones(3, 2, dtype=F64))
        moved.append(game.leader.x.detach())
    torch.testing.assert_close(*moved)
