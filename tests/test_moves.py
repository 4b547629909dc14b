"""How players move: optimizers with hooks, without, or none; autocast; constraints."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import bilevel
from bilevel import (
    Bilevel,
    BilevelError,
    Extragradient,
    FollowerProblem,
    Implicit,
    Iterative,
    LeaderProblem,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.robustness import Batch
from bilevel.updates import CoordinateMLP, Gradient
from tests.problems import Nearest, Scalar, Weights, image_game


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class Clearing(torch.optim.SGD):
    """Clears the gradients before it evaluates."""

    def step(self, closure):
        self.zero_grad()
        return super().step(closure)


class Bare(torch.optim.SGD):
    """Calls its closure where gradients are switched off, as some optimizers do."""

    @torch.no_grad()
    def step(self, closure):
        loss = closure()
        torch.optim.SGD.step(self)
        return loss


def test_a_closure_takes_gradients_wherever_it_is_called() -> None:
    results = []
    for kind in (torch.optim.SGD, Bare):
        torch.manual_seed(0)
        leader, follower, batch = image_game()
        optimizer = kind(leader.parameters(), lr=0.1)
        Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer).step(batch)
        results.append(flat(leader))
    assert torch.equal(*results)


@pytest.mark.parametrize("schedule", [bilevel.Simultaneous(), Extragradient()], ids=repr)
def test_weights_that_are_cached_around_a_step_are_trained(schedule) -> None:
    results = []
    for cached in (nullcontext, parametrize.cached):
        torch.manual_seed(0)
        leader, follower, batch = image_game()
        nn.utils.parametrizations.weight_norm(leader.model.layers[0])
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        solver = pgm(0.1, 2)
        game = Bilevel(leader, follower, solver, leader_opt=optimizer, schedule=schedule)
        with cached():
            game.step(batch)
        results.append(flat(leader))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "adjoint",
    [Unrolled(), Implicit(), bilevel.Penalty(10.0), bilevel.Forward(), bilevel.Detached()],
    ids=repr,
)
def test_no_grad_around_a_step_changes_nothing(adjoint) -> None:
    results = []
    for mode in (torch.enable_grad, torch.no_grad):
        leader = Weights(4)
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        solver = Iterative(Gradient(0.5), 20)
        game = Bilevel(leader, Nearest(), solver, leader_opt=optimizer, adjoint=adjoint)
        with mode():
            game.step(Batch(torch.ones(2, 4), torch.zeros(2)))
        results.append(leader.w.detach().clone())
    assert torch.equal(*results)


def test_an_optimizer_that_clears_the_gradients_before_it_evaluates() -> None:
    moved = []
    for kind in (torch.optim.SGD, Clearing):
        torch.manual_seed(0)
        leader, follower, batch = image_game()
        game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=kind(leader.parameters(), lr=0.1))
        game.step(batch)
        moved.append(flat(leader))
    assert torch.equal(*moved)


def test_an_optimizer_that_moves_first_is_not_given_the_gradient_from_before() -> None:
    """Sharpness-aware: climbs along the gradient, and descends by that of the point reached."""

    class Aware(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure):
            parameter = self.param_groups[0]["params"][0]
            parameter.add_(parameter.grad)  # 1: that of this step
            closure()
            parameter.sub_(1.0)
            super().step()

    class Square(bilevel.LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor(1.0))

        def loss(self, y, batch):
            return self.x.square() / 2

    leader, (_, follower, batch) = Square(), image_game()
    optimizer = Aware(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, STILL, leader_opt=optimizer, adjoint=bilevel.Detached())
    game.move_leader(torch.zeros(()), batch)
    assert leader.x.item() == pytest.approx(1.0 - 0.1 * 2.0)


STILL = pgm(0.1, 0)


class Shift(FollowerProblem):
    """max over y of (f(x) + y)² − 2y², attained at y = f(x)."""

    sense = "max"

    def init(self, batch):
        return torch.zeros(len(batch))

    def objective(self, leader, y, batch):
        return (leader.model(batch).squeeze(1).float() + y).square() - 2 * y.square()


class Inside(nn.Sequential):
    """Autocast within each forward pass, which keeps nothing beyond it."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def trained(network: type[nn.Sequential], optimizer=torch.optim.SGD, **settings) -> Tensor:
    torch.manual_seed(0)
    batch = torch.randn(8, 4)
    leader = ZeroSum(network(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)), Shift())
    optimizer = optimizer(leader.parameters(), lr=0.2)
    solver = Iterative(Gradient(0.2), 2)
    game = Bilevel(leader, leader.follower, solver, leader_opt=optimizer, **settings)
    for _ in range(3):
        game.step(batch)
    return flat(leader)


@pytest.mark.parametrize(
    "settings", [{"schedule": Extragradient()}, {}, {"optimizer": torch.optim.LBFGS}], ids=str
)
def test_autocast_around_steps_computes_with_the_weights_as_they_are(settings) -> None:
    """Autocast keeps converted weights until its block ends; a game moves within it."""
    with torch.autocast("cpu", torch.bfloat16):
        around = trained(nn.Sequential, **settings)
    torch.testing.assert_close(around, trained(Inside, **settings), rtol=0.01, atol=1e-3)


def test_a_learned_solver_trains_against_a_leader_that_stands_still() -> None:
    leader, follower, batch = image_game()
    leader.requires_grad_(False)
    solver = Iterative(CoordinateMLP(scale=0.1, gradient_skip=0.1), 2)
    optimizer = torch.optim.Adam(solver.parameters(), lr=1e-2)
    game = Bilevel(leader, follower, solver, leader_opt=None, solver_opt=optimizer)
    before, phi = flat(leader), flat(solver)
    losses = [game.step(batch)["loss"].item() for _ in range(20)]
    assert torch.equal(flat(leader), before)
    assert not torch.equal(flat(solver), phi)
    assert losses[-1] > losses[0]
    game.load_state_dict(game.state_dict())


def test_a_leader_that_is_no_network_at_all() -> None:
    follower = Shift()
    leader = ZeroSum(nn.Identity(), follower)
    batch = torch.randn(8, 1)
    game = Bilevel(leader, follower, Iterative(Gradient(0.5), 1), leader_opt=None)
    torch.testing.assert_close(game.step(batch)["loss"], 2 * batch.square().mean())


def test_a_leader_projects_in_place_without_further_ado() -> None:
    class Inside(ZeroSum):
        def project(self) -> None:
            self.model.x.clamp_(0, 1)

    class Push(FollowerProblem):
        sense = "max"

        def init(self, batch):
            return torch.zeros(())

        def objective(self, leader, y, batch):
            return leader.model.x * (y + 1)

    leader = Inside(Scalar(0.3), Push())
    optimizer = torch.optim.SGD(leader.parameters(), lr=1.0)
    Bilevel(leader, leader.follower, STILL, leader_opt=optimizer).step(None)
    assert leader.model.x.item() == 0.0


class Reaches(LeaderProblem):
    """min over θ of ½ (y*(θ) − 1)² + ½ (θ − 0.3)² with y* = 2θ, attained at θ = 2.3 / 5."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1).double())

    def loss(self, y, batch):
        return ((y - 1).square() + (self.theta - 0.3).square()).sum() / 2


class Doubles(FollowerProblem):
    sense = "min"

    def init(self, batch):
        return torch.zeros(1).double()

    def objective(self, leader, y, batch):
        return (y - 2 * leader.theta).square().sum() / 2


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=repr)
def test_an_optimizer_that_asks_again_is_asked_about_the_same_function(adjoint) -> None:
    """L-BFGS compares gradients of several points: at each the follower answers anew."""
    leader, solver = Reaches(), Iterative(Gradient(0.5), 60)
    lbfgs = torch.optim.LBFGS(leader.parameters(), lr=1.0, max_iter=10)
    game = Bilevel(leader, Doubles(), solver, leader_opt=lbfgs, adjoint=adjoint)
    game.step(None)
    assert leader.theta.item() == pytest.approx(2.3 / 5, abs=1e-9)
    leader, warm = Reaches(), Iterative(Gradient(0.5), 60, warm_start=True)
    lbfgs = torch.optim.LBFGS(leader.parameters())
    with pytest.raises(BilevelError, match=r"LBFGS evaluates .* warm_start=False"):
        Bilevel(leader, Doubles(), warm, leader_opt=lbfgs, adjoint=adjoint).step(None)


def test_gradients_may_be_clipped_between_closure_and_step() -> None:
    class Clipped(torch.optim.SGD):
        def step(self, closure):
            def clipped():
                loss = closure()
                nn.utils.clip_grad_norm_(self.param_groups[0]["params"], max_norm=1e-3)
                return loss

            return super().step(clipped)

    leader, follower, batch = image_game()
    before = torch.cat([p.detach().flatten() for p in leader.parameters()])
    optimizer = Clipped(leader.parameters(), lr=1.0)
    Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer).step(batch)
    after = torch.cat([p.detach().flatten() for p in leader.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


class Toward(FollowerProblem):
    """min over y of (y − θ)²."""

    sense = "min"

    def init(self, batch: None) -> Tensor:
        return torch.zeros(())

    def objective(self, leader: Distance, y: Tensor, batch: None) -> Tensor:
        return (y - leader.theta).square()


class Ahead(bilevel.Schedule):
    """The leader moves through a step that the follower would take."""

    def step(self, game: Bilevel, batch: None) -> dict[str, Tensor]:
        solver = Iterative(Gradient(0.25), 1)
        ahead = Unrolled().solve(solver, game.follower, game.leader, batch)
        loss = game.move_leader(ahead.value, batch)
        game.move_solver(game.solve(batch).value, batch)
        return game.metrics(loss, ahead)


class Distance(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(1.0))

    def loss(self, y: Tensor, batch: None) -> Tensor:
        return (y - 3).square() + 0 * self.theta


def test_a_schedule_may_differentiate_by_an_adjoint_of_its_own() -> None:
    """y₁ = y₀ − 2 · 0.25 (y₀ − θ) = θ / 2, so that the gradient is 2 (θ / 2 − 3) / 2."""
    leader, solver = Distance(), bilevel.Parametric(torch.zeros(()))
    game = Bilevel(
        leader,
        Toward(),
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.0),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.5),
        adjoint=bilevel.Detached(),
        schedule=Ahead(),
    )
    game.step(None)
    assert leader.theta.grad.item() == -2.5
    assert solver.y.item() == 1.0


@pytest.mark.parametrize("replaced", ["the parameter", "the optimizer", "in project"])
def test_an_optimizer_of_parameters_that_were_replaced(replaced: str) -> None:
    """Since the game was built: nothing would train, without a word."""

    class Rebinding(Weights):
        def project(self) -> None:
            self.w = nn.Parameter(self.w.detach().clamp(0, 1))

    leader, batch = (Rebinding if replaced == "in project" else Weights)(3), Batch(None, None)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(
        leader, Nearest(), Iterative(Gradient(0.1), 1), leader_opt=optimizer, adjoint=Unrolled()
    )
    if replaced == "the parameter":
        leader.w = nn.Parameter(leader.w.detach().clone())
    elif replaced == "the optimizer":
        game.leader_opt = torch.optim.SGD(Weights(3).parameters(), lr=0.1)
    with pytest.raises(BilevelError, match="parameters that do not belong to the leader"):
        game.step(batch)
