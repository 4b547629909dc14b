"""The recipes for followers, updates and solvers of one's own, as they are printed."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
from torch import nn

import bilevel
from bilevel import games
from tests.recipes import example, follow


@pytest.mark.parametrize("adjoint", [bilevel.Unrolled(), bilevel.Forward()])
def test_a_step_size_of_the_leaders(tmp_path, adjoint) -> None:
    """Min over y of ½(y − 1)²: after two steps y = 1 − (1 − η)², so dy/d log η = 2η(1 − η)."""
    names = follow(example(tmp_path), "A step size that the leader learns")

    class Leader(bilevel.LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.log_step = nn.Parameter(torch.tensor(0.2).log())

        def loss(self, y, batch):
            return y

    class One(bilevel.FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.zeros(())

        def objective(self, leader, y, batch):
            return (y - 1).square() / 2

    leader = Leader()
    solver = bilevel.Iterative(names["LeadersStep"](leader), 2)
    adjoint.solve(solver, One(), leader, None).value.backward()
    assert leader.log_step.grad.item() == pytest.approx(2 * 0.2 * 0.8, rel=1e-5)


class Penalties(bilevel.LeaderProblem):
    """Penalties of a regression, judged on held-out rows."""

    def __init__(self) -> None:
        super().__init__()
        self.log_penalty = nn.Parameter(torch.linspace(-2, 0, 3, dtype=torch.float64))

    def loss(self, y, batch):
        return (batch["held_out"] @ y - batch["t"]).square().mean()


def regression() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names, kind = ("x", "held_out"), {"dtype": torch.float64}
    return {**{name: torch.randn(40, 3, **kind) for name in names}, "t": torch.randn(40, **kind)}


def test_minibatches_within_a_solve(tmp_path) -> None:
    problem = follow(example(tmp_path), "Minibatches within a solve")["Regression"]()
    batch, leader, grads = regression(), Penalties().float(), []
    batch = {name: leaf.float() for name, leaf in batch.items()}
    solver = bilevel.Iterative(bilevel.updates.Gradient(0.05), 10)
    for adjoint in (bilevel.Unrolled(), bilevel.Unrolled(recompute=True)):
        torch.manual_seed(1)
        value = adjoint.solve(solver, problem, leader, batch).value
        grads += torch.autograd.grad(leader.loss(value, batch), leader.log_penalty)
    torch.testing.assert_close(*grads)


def test_a_single_loop_takes_the_steps_of_soba(tmp_path) -> None:
    names = follow(example(tmp_path), "Everything in a single loop")
    game, theta = names["single_loop"], names["penalties"].log_penalty
    objective, loss = game.follower.objective, game.leader.loss
    y, v = torch.zeros(5), torch.zeros(5)
    by_hand = types.SimpleNamespace(log_penalty=theta.detach().clone().requires_grad_())
    for _ in range(5):
        batch = {name: torch.randn(20, 5) for name in ("x", "validation x")}
        batch |= {name: torch.randn(20) for name in ("t", "validation t")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bilevel.HypergradientWarning)
            game.step(batch)
        y.requires_grad_()
        y = (y - 0.1 * torch.autograd.grad(objective(by_hand, y, batch), y)[0]).detach()
        y.requires_grad_()
        (slope,) = torch.autograd.grad(objective(by_hand, y, batch), y, create_graph=True)
        (product,) = torch.autograd.grad(slope, y, v, retain_graph=True)
        v = v + 0.1 * (torch.autograd.grad(loss(y, batch), y)[0] - product)
        (mixed,) = torch.autograd.grad(slope, by_hand.log_penalty, v)
        by_hand.log_penalty.data += 0.5 * mixed
        y = y.detach()
    torch.testing.assert_close(theta.detach(), by_hand.log_penalty.detach())


def test_proximal_steps(tmp_path) -> None:
    names = follow(example(tmp_path), "Proximal steps")
    assert names["ista"].update.threshold.grad != 0
    solver = bilevel.Iterative(names["Shrinkage"](0.2, 0.2 * 0.1), 2000)
    batch = {"A": torch.randn(4, 20, 40) / 20**0.5, "b": torch.randn(4, 20)}
    y = solver.solve(names["lasso"], names["training"].leader, batch).value.detach()
    gradient = names["lasso"].context(y, batch)
    torch.testing.assert_close(gradient[y != 0], -0.1 * y[y != 0].sign(), rtol=0, atol=1e-3)
    assert (gradient.abs() < 0.101).all()


@pytest.mark.parametrize("adjoint", [bilevel.Unrolled(), bilevel.Implicit()], ids=str)
def test_a_solver_of_ones_own(tmp_path, adjoint) -> None:
    names = follow(example(tmp_path), "A solver of your own")

    class Whole(bilevel.FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.zeros(3, dtype=torch.float64)

        def objective(self, leader, y, batch):
            penalty = (leader.log_penalty.exp() * y.square()).sum()
            return (batch["x"] @ y - batch["t"]).square().mean() + penalty

    converged = names["Converged"](bilevel.updates.Gradient(0.1), tolerance=1e-12)
    for solver in (names["Ridge"](), converged):
        bilevel.testing.check_adjoint(adjoint, solver, Whole(), Penalties(), regression())


def test_followers_that_play_against_each_other(tmp_path) -> None:
    """Three firms under a leader's quantity q: each sells y = (1 − c − q) / 4."""
    names = follow(example(tmp_path), "Several followers")

    class Quantity(bilevel.LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def loss(self, y, batch):
            return y.sum()

    class Market(bilevel.FollowerProblem):
        sense = "max"

        def init(self, batch):
            return torch.full((3,), 0.1, dtype=torch.float64)

        def objective(self, leader, y, batch):
            return profits(leader, y)

    def profits(leader, y):
        return (1 - leader.q - y.sum() - 0.1) * y

    leader = Quantity()
    update = names["Nash"](leader, profits, 0.2)
    implicit = bilevel.Implicit(fixed_point=update, tolerance=1e-12)
    steps = bilevel.Unrolled(), bilevel.Unrolled(recompute=True), bilevel.Forward()
    for adjoint in (*steps, implicit):
        leader.zero_grad()
        solution = adjoint.solve(bilevel.Iterative(update, 200), Market(), leader, None)
        torch.testing.assert_close(solution.value.detach(), torch.full((3,), 0.15).double())
        solution.value.sum().backward()
        torch.testing.assert_close(leader.q.grad, torch.tensor(-0.75).double())


def test_a_leader_that_is_the_threshold(tmp_path) -> None:
    names = follow(example(tmp_path), "Proximal steps")

    class Penalty(bilevel.LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.log_penalty = nn.Parameter(torch.tensor(-2.0))

        def loss(self, y, batch):
            return y.square().sum()

    batch = {"A": torch.randn(4, 40, 20) / 40**0.5, "b": torch.randn(4, 40)}
    slopes, leader = [], Penalty()
    update = names["LeadersShrinkage"](leader, 0.2)
    for adjoint in (bilevel.Unrolled(), bilevel.Implicit(fixed_point=update, max_steps=500)):
        solver = bilevel.Iterative(update, 1000)
        solution = adjoint.solve(solver, names["lasso"], leader, batch)
        (slope,) = torch.autograd.grad(leader.loss(solution.value, batch), leader.log_penalty)
        slopes.append(slope)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*the follower ignores:bilevel.HypergradientWarning")
def test_a_deep_equilibrium(tmp_path) -> None:
    names = follow(example(tmp_path), "A layer that is a fixed point: deep equilibrium models")
    game, deep = names["equilibrium"], names["deep"]
    batch = {"x": torch.randn(20, 5), "y": torch.arange(20) % 3}
    z = torch.zeros(20, 16)
    for _ in range(60):  # by hand, through all steps
        z = deep.layer(z, batch["x"])
    expected = torch.autograd.grad(deep.loss(z, batch), [*deep.parameters()])
    loss = deep.loss(game.solve(batch).value, batch)
    for found, slope in zip(torch.autograd.grad(loss, [*deep.parameters()]), expected, strict=True):
        torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-5)
    before = game.step(batch)["loss"]
    for _ in range(60):
        after = game.step(batch)["loss"]
    assert after < 0.95 * before


def test_a_schedule_that_reads_second_derivatives(tmp_path) -> None:
    """On xy it moves as extragradient steps do: (I − ηJ) J = J + η I, as J² = −I."""
    looking = follow(example(tmp_path), "A schedule that reads second derivatives")["looking"]
    twin = games.begin(games.bilinear(), 1.0, 0.5, lr=0.5, schedule=bilevel.Extragradient())
    end = games.trajectory(twin, 100)[-1]
    torch.testing.assert_close(games.position(looking), end)
    assert 0 < end.norm() < 1e-4


class Other(bilevel.FollowerProblem):
    """A player whose cost is no function of the other's."""

    sense = "min"

    def __init__(self, costs) -> None:
        self.costs = costs

    def init(self, batch):
        return torch.zeros(3, dtype=torch.float64)

    def objective(self, leader, y, batch):
        return self.costs(leader.x, y)[1]


class One(bilevel.LeaderProblem):
    def __init__(self, costs) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))
        self.costs = costs

    def loss(self, y, batch):
        return self.costs(self.x, y)[0]


def test_a_schedule_that_shapes_the_others_step(tmp_path) -> None:
    """To first order, the slope of each player's loss after the other's step."""
    names = follow(example(tmp_path), "A schedule that reads second derivatives")
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 3, dtype=torch.float64)
    eta = 1e-5

    def costs(x, y):
        return (x @ a @ y).sin() + x.square().sum(), (x @ b @ y).cos() + y.square().sum()

    leader = One(costs)
    solver = bilevel.Parametric(torch.tensor([0.2, 0.4, -0.6], dtype=torch.float64))
    x, y = (p.detach().clone() for p in (leader.x, solver.y))
    opts = [torch.optim.SGD(player.parameters(), lr=1.0) for player in (leader, solver)]
    game = bilevel.Bilevel(
        leader,
        Other(costs),
        solver,
        leader_opt=opts[0],
        solver_opt=opts[1],
        adjoint=bilevel.Detached(),
        schedule=names["LOLA"](eta),
    )
    game.step(None)

    def after(x, y, own):
        """The cost of a player where the other has moved."""
        if own == 0:
            return costs(x, y - eta * torch.func.grad(lambda y: costs(x, y)[1])(y))[0]
        return costs(x - eta * torch.func.grad(lambda x: costs(x, y)[0])(x), y)[1]

    for own, moved in enumerate([x - leader.x, y - solver.y]):
        plain = torch.func.grad(lambda x, y, own=own: costs(x, y)[own], argnums=own)(x, y)
        expected = torch.func.grad(after, argnums=own)(x, y, own)
        torch.testing.assert_close(moved.detach(), expected, rtol=0, atol=1e-8)
        assert (plain - expected).norm() > 1e-6
