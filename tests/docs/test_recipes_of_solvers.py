"""The recipes for followers, updates and solvers of one's own, as they are printed."""

from __future__ import annotations

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
    quasi_newton = [names["LBFGS"](50)] if isinstance(adjoint, bilevel.Implicit) else []
    for solver in (names["Ridge"](), converged, *quasi_newton):
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


@pytest.mark.filterwarnings("ignore:Implicit.*not stationary:bilevel.HypergradientWarning")
def test_an_actor_that_leads_its_critic(tmp_path) -> None:
    """Its gradient with a critic that has converged is that of the values in closed form."""
    title = "A critic as the follower: Stackelberg actor–critic"
    names = follow(example(tmp_path), title)
    actor, step, game = (names[name] for name in ("actor", "critic_step", "stackelberg"))
    for module in (actor, game.solver):
        module.double()
    transition = torch.rand(5, 3, 5, dtype=torch.float64)
    transition /= transition.sum(-1, keepdim=True)
    batch = {"reward": torch.randn(5, 3, dtype=torch.float64), "transition": transition}

    def value() -> torch.Tensor:
        policy = actor.logits.softmax(1)
        chain = torch.einsum("sa,sat->st", policy, transition)
        reward = (policy * batch["reward"]).sum(1)
        return torch.linalg.solve(torch.eye(5, dtype=torch.float64) - 0.9 * chain, reward).mean()

    solved = bilevel.Iterative(step, 500)
    answer = bilevel.Implicit(fixed_point=step).solve(solved, names["Critic"](), actor, batch).value
    (found,) = torch.autograd.grad(actor.loss(answer, batch), actor.logits)
    (expected,) = torch.autograd.grad(-value(), actor.logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for _ in range(300):
        game.step(batch)
    best = batch["reward"].new_zeros(5)
    for _ in range(300):  # value iteration
        best = (batch["reward"] + 0.9 * transition @ best).amax(1)
    assert value() > best.mean() - 0.05 * best.std().clamp(min=1)


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


def play(costs, schedule, lr: float) -> list[tuple[torch.Tensor, ...]]:
    """The moves of both players in each of three steps."""
    leader = One(costs)
    solver = bilevel.Parametric(torch.tensor([0.2, 0.4, -0.6], dtype=torch.float64))
    before = [player.detach().clone() for player in (leader.x, solver.y)]
    opts = [torch.optim.SGD(player.parameters(), lr=lr) for player in (leader, solver)]
    game = bilevel.Bilevel(
        leader,
        Other(costs),
        solver,
        leader_opt=opts[0],
        solver_opt=opts[1],
        adjoint=bilevel.Detached(),
        schedule=schedule,
    )
    moves = []
    for _ in range(3):
        game.step(None)
        after = [player.detach().clone() for player in (leader.x, solver.y)]
        moves.append(tuple(b - a for a, b in zip(before, after, strict=True)))
        before = after
    return moves


def general_costs():
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 3, dtype=torch.float64)

    def costs(x, y):
        return (x @ a @ y).sin() + x.square().sum(), (x @ b @ y).cos() + y.square().sum()

    return costs


def test_a_schedule_that_shapes_the_others_step(tmp_path) -> None:
    """LOLA: the slope of the other's step, times that of the own cost where the other is."""
    names = follow(example(tmp_path), "A schedule that reads second derivatives")
    costs, eta, lr = general_costs(), 0.1, 0.5
    x = torch.tensor([0.5, -0.3], dtype=torch.float64)
    y = torch.tensor([0.2, 0.4, -0.6], dtype=torch.float64)
    first, second = (lambda x, y, own=own: costs(x, y)[own] for own in range(2))
    grad = torch.func.grad
    for moves in play(costs, names["LOLA"](eta), lr):
        # Of the surrogate cost − η ⟨∂ cost / ∂ other, the other's gradient⟩, whose first is held.
        mine, others = grad(first, 1)(x, y), grad(second)(x, y)
        dx = grad(lambda x, y=y, h=mine: first(x, y) - eta * h @ grad(second, 1)(x, y))(x)
        dy = grad(lambda y, x=x, h=others: second(x, y) - eta * h @ grad(first)(x, y), 0)(y)
        torch.testing.assert_close(moves, (-lr * dx, -lr * dy), rtol=1e-10, atol=1e-12)
        assert (dx - grad(first)(x, y)).norm() > 1e-4
        x, y = x + moves[0], y + moves[1]


def test_competitive_steps_at_rates_of_rmsprop(tmp_path) -> None:
    """ACGD: both moves solve the game that is bilinear around the point."""
    names = follow(example(tmp_path), "A schedule that reads second derivatives")
    torch.manual_seed(0)
    a = torch.randn(2, 3, dtype=torch.float64)

    def f(x, y):
        return (x @ a @ y).sin() + x.square().sum() - y.square().sum()

    schedule = names["AdaptiveCompetitive"](0.05)
    x = torch.tensor([0.5, -0.3], dtype=torch.float64)
    y = torch.tensor([0.2, 0.4, -0.6], dtype=torch.float64)
    square, rates = torch.zeros(5, dtype=torch.float64), []
    for k, moves in enumerate(play(lambda x, y: (f(x, y), -f(x, y)), schedule, 1.0), 1):
        slopes = torch.cat([torch.func.grad(f)(x, y), -torch.func.grad(f, 1)(x, y)])
        square = 0.99 * square + 0.01 * slopes**2
        rate = (1 - 0.99**k) ** 0.5 * 0.05 / (square.sqrt() + 1e-5)
        across = torch.zeros(5, 5, dtype=torch.float64)
        across[:2, 2:] = torch.func.jacrev(torch.func.grad(f), 1)(x, y)
        across[2:, :2] = -across[:2, 2:].T
        # Each minimises its own cost with the other's move in it, and its own squared over rates.
        expected = -torch.linalg.solve(torch.diag(1 / rate) + across, slopes)
        torch.testing.assert_close(torch.cat(moves), expected, rtol=1e-5, atol=1e-8)
        x, y, rates = x + moves[0], y + moves[1], [*rates, rate]
    assert (rates[-1] - rates[0]).norm() > 1e-3
