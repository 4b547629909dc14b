"""The code of docs/recipes.md runs as it is printed, and does what the page says."""

from __future__ import annotations

import copy
import re
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilevel
from bilevel.robustness import Batch, Linf

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
RECIPES = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
}


def example(tmp_path: Path) -> dict[str, Any]:
    """The names of the example that the page continues."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    follower = Linf(8 / 255)
    leader = bilevel.ZeroSum(model, follower)
    solver = bilevel.Iterative(bilevel.updates.CNN(3, 8 / 255, form="two-layer", width=4), steps=2)
    game = bilevel.Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=1e-3),
    )
    loader = [(torch.rand(8, 3, 8, 8), torch.arange(8) % 4) for _ in range(4)]
    names = ("model", "leader", "follower", "solver", "game", "loader")
    given = {name: value for name, value in locals().items() if name in names}
    shared = {"bilevel": bilevel, "torch": torch, "F": F, "Batch": Batch}
    return {**given, **shared, "path": tmp_path / "run.pt"}


def follow(names: dict[str, Any], title: str) -> dict[str, Any]:
    assert RECIPES[title], "the recipe has lost its code"
    for code in RECIPES[title]:
        exec(code, names)
    return names


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_clipping(tmp_path) -> None:
    names = follow(example(tmp_path), "Clip gradients")
    game, (x, y) = names["game"], names["loader"][0]
    with torch.no_grad():
        names["model"][1].weight.mul_(100)  # a large loss has a large gradient
    before = flat(game.leader)
    game.step(Batch(x, y))
    assert (flat(game.leader) - before).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_a_saved_run_goes_on_bit_for_bit(tmp_path) -> None:
    names = follow(example(tmp_path), "Learning-rate schedules")
    follow(names, "Save and resume")
    again = example(tmp_path)
    again["scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(again["game"].leader_opt, 100)
    exec(RECIPES["Save and resume"][0].split("\n\n")[1], again)
    losses = []
    for run in (names, again):
        for x, y in names["loader"]:
            loss = run["game"].step(Batch(x, y))["loss"]
            run["scheduler"].step()
        losses.append(loss)
    assert torch.equal(*losses)
    assert torch.equal(flat(names["leader"]), flat(again["leader"]))


def test_mixed_precision_and_compilation(tmp_path) -> None:
    names = example(tmp_path)
    before = list(names["game"].state_dict()["leader"])
    follow(names, "Mixed precision and compilation")
    assert list(names["game"].state_dict()["leader"]) == before
    assert names["metrics"]["loss"].isfinite()


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path) -> None:
    names = follow(example(tmp_path), "Accumulate gradients")
    whole, x = names["leader"], torch.rand(16, 3, 8, 8)
    parts, y = copy.deepcopy(whole), torch.arange(16) % 4
    games = [
        bilevel.Bilevel(
            leader,
            leader.follower,
            bilevel.pgm(0.01, 2),
            leader_opt=kind(leader.parameters(), lr=0.1),
        )
        for leader, kind in ((whole, torch.optim.SGD), (parts, names["Accumulated"]))
    ]
    for _ in range(2):
        games[0].step(Batch(x, y))
        for part in range(4):
            games[1].step(Batch(x[4 * part : 4 * part + 4], y[4 * part : 4 * part + 4]))
    torch.testing.assert_close(flat(parts), flat(whole))


def test_one_player_only(tmp_path) -> None:
    names = example(tmp_path)
    before = flat(names["leader"])
    follow(names, "Train one player only")
    assert torch.equal(flat(names["leader"]), before)


@pytest.fixture(params=["torch.nn.Identity()", "torch.nn.Dropout(0.5)"])
def gan(request, monkeypatch, tmp_path) -> dict[str, Any]:
    """The names of the recipe, as it is printed and with layers that mind the mode."""
    title, between = "A network as the follower: GANs", f"64), {request.param}, torch.nn.LeakyReLU"
    code = [block.replace("64), torch.nn.LeakyReLU", between) for block in RECIPES[title]]
    assert code != RECIPES[title]
    monkeypatch.setitem(RECIPES, title, code)
    return follow(example(tmp_path), title)


def test_a_gan_follows_the_gradients_that_autograd_gives(gan) -> None:
    critic, generator = (copy.deepcopy(m) for m in (gan["judge"].network, gan["forger"]))
    optimizers = [
        torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.5, 0.9))
        for module in (critic, generator.generator)
    ]
    playing = (gan["gan"].solver_opt, gan["gan"].leader_opt)
    for optimizer, player in zip(optimizers, playing, strict=True):
        optimizer.load_state_dict(copy.deepcopy(player.state_dict()))
    batch = {"real": torch.randn(128, 2), "noise": torch.randn(128, 16)}
    torch.manual_seed(1)
    gan["gan"].step(batch)
    torch.manual_seed(1)
    fake = generator.generator(batch["noise"])
    scores = F.logsigmoid(critic(batch["real"])).mean() + F.logsigmoid(-critic(fake)).mean()
    optimizers[0].zero_grad()
    (-scores).backward()
    optimizers[0].step()
    optimizers[1].zero_grad()
    (-F.logsigmoid(critic(generator.generator(batch["noise"]))).mean()).backward()
    optimizers[1].step()
    torch.testing.assert_close(flat(gan["judge"].network), flat(critic))
    torch.testing.assert_close(flat(gan["forger"]), flat(generator.generator))


def test_each_step_of_a_critic_has_a_batch_of_its_own(gan) -> None:
    """Of one batch it is a step of the alternating schedule, of several it moves D on each."""
    batches = [{"real": torch.randn(8, 2), "noise": torch.randn(8, 16)} for _ in range(3)]
    game, critic = gan["gan"], gan["judge"].network
    twin = copy.deepcopy(game)
    twin.schedule = gan["FreshBatches"]()
    torch.manual_seed(1)
    game.step(batches[0])
    torch.manual_seed(1)
    twin.step(batches[:1])
    torch.testing.assert_close(flat(twin.solver), flat(critic))
    torch.testing.assert_close(flat(twin.leader), flat(game.leader))
    torch.manual_seed(1)
    for batch in batches:
        game.move_solver(game.solve(batch).value, batch)
    torch.manual_seed(1)
    twin.step(batches)
    torch.testing.assert_close(flat(twin.solver), flat(critic))


def test_weights_of_groups_are_multiplied(tmp_path) -> None:
    """A step of group DRO: w ← w · exp(η · mean loss of the group), normalised."""
    names = follow(example(tmp_path), "Points of the simplex")
    model, logits, samples = names["fair"].model, names["weights"].y, names["samples"]
    before = logits.detach().softmax(0)
    losses = F.cross_entropy(model(samples["x"]), samples["y"], reduction="none").detach()
    means = torch.stack([losses[samples["group"] == group].mean() for group in range(3)])
    names["game"].step(samples)
    expected = before * (0.01 * means).exp()
    torch.testing.assert_close(logits.detach().softmax(0), expected / expected.sum())


def test_extrapolated_logits_are_mirror_prox(tmp_path) -> None:
    mirror = follow(example(tmp_path), "Points of the simplex")["MirrorMap"].apply
    payoff = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]).double()

    class Mixed(bilevel.FollowerProblem):
        sense = "max"

        def init(self, batch):
            return torch.zeros(3).double()

        def objective(self, leader, z, batch):
            return mirror(leader.model.logits) @ payoff @ mirror(z)

    model, follower = nn.Module(), Mixed()
    x = torch.tensor([0.7, 0.2, 0.1]).double()
    y = torch.tensor([0.1, 0.6, 0.3]).double()
    model.logits = nn.Parameter(x.log())
    leader, solver = bilevel.ZeroSum(model, follower), bilevel.Parametric(y.log())
    game = bilevel.Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.5),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.5),
        schedule=bilevel.Extragradient(),
    )

    def moved(x, y, ahead):
        both = x * (-0.5 * payoff @ ahead[1]).exp(), y * (0.5 * ahead[0] @ payoff).exp()
        return [point / point.sum() for point in both]

    for _ in range(20):
        game.step(None)
        x, y = moved(x, y, ahead=moved(x, y, ahead=(x, y)))
    torch.testing.assert_close(model.logits.detach().softmax(0), x)
    torch.testing.assert_close(solver.y.detach().softmax(0), y)


def test_a_gradient_penalty_is_evaluated_without_gradients_too(tmp_path) -> None:
    names = follow(example(tmp_path), "A network as the follower: GANs")
    critic = names["judge"].network
    batch = {"real": torch.randn(128, 2), "noise": torch.randn(128, 16)}
    plain, penalized = (
        bilevel.Parametric(critic).solve(follower, names["forger"], batch).stats["objective_after"]
        for follower in (names["judge"], names["Regularized"](critic))
    )
    slopes = torch.func.vmap(torch.func.grad(lambda x: critic(x)[0]))(batch["real"])
    torch.testing.assert_close(penalized, plain - 5 * slopes.norm(dim=1).square().mean())


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
    for adjoint in (bilevel.Unrolled(), bilevel.Implicit(fixed_point=update, tolerance=1e-12)):
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

    batch = {"A": torch.randn(4, 20, 40) / 20**0.5, "b": torch.randn(4, 20)}
    slopes, leader = [], Penalty()
    update = names["LeadersShrinkage"](leader, 0.2)
    for adjoint in (bilevel.Unrolled(), bilevel.Implicit(fixed_point=update, max_steps=500)):
        solver = bilevel.Iterative(update, 1000)
        solution = adjoint.solve(solver, names["lasso"], leader, batch)
        (slope,) = torch.autograd.grad(leader.loss(solution.value, batch), leader.log_penalty)
        slopes.append(slope)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-4)


def test_training_on_all_iterates(tmp_path) -> None:
    names = follow(example(tmp_path), "Proximal steps")
    names = follow(names, "Train a learned update on all its iterates")
    lasso, game, path, solver = (names[name] for name in ("lasso", "training", "path", "trained"))
    batch = {"A": torch.randn(32, 20, 40) / 20**0.5, "b": torch.randn(32, 20)}

    def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
        y, values = lasso.init(batch), []
        for _ in range(10):
            y, _ = path.update(y, None, lasso.context(y, batch), None)
            values.append(lasso.objective(None, y, batch).mean())
        return torch.stack(values).mean(), y

    mean, last = by_hand()
    slopes = torch.autograd.grad(mean, list(path.parameters()))
    torch.testing.assert_close(solver.solve(lasso, game.leader, batch).value, last)
    metrics = game.step(batch)
    torch.testing.assert_close(metrics["objective_after"], mean.detach())
    for parameter, slope in zip(path.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)
    for _ in range(60):
        game.step(batch)
    assert by_hand()[0] < 0.98 * mean


def test_windows_of_a_path_go_on(tmp_path) -> None:
    names = follow(example(tmp_path), "Proximal steps")
    names = follow(names, "Train a learned update on all its iterates")
    game, every, update = names["training"], names["every"], bilevel.updates.Gradient(0.01)
    batch = {"A": torch.randn(32, 20, 40) / 20**0.5, "b": torch.randn(32, 20)}
    whole = names["Path"](update, 6).solve(every, game.leader, batch, evaluate=False)
    windows = names["Path"](update, 3, warm_start=True)
    parts = [windows.solve(every, game.leader, batch, evaluate=False) for _ in range(2)]
    torch.testing.assert_close(torch.cat([part.value for part in parts], dim=1), whole.value)
    assert [whole.evaluations, *(part.evaluations for part in parts)] == [6, 3, 3]
    windows.kept = None
    again = windows.solve(every, game.leader, batch, evaluate=False).value
    torch.testing.assert_close(again, parts[0].value)


def test_networks_are_trained_by_what_was_trained_on_networks(tmp_path) -> None:
    names = follow(example(tmp_path), "Train networks with a learned optimizer")
    fit, learned, training, task = (names[n] for n in ("fit", "learned", "training", "task"))
    starts = [fit.init(task)["0.weight"] for _ in range(2)]
    assert not torch.equal(*starts)  # networks drawn anew
    before = [training.step(task)["objective_after"] for _ in range(5)]
    for _ in range(100):
        training.step(task)
    after = [training.step(task)["objective_after"] for _ in range(5)]
    assert sum(after) < 0.9 * sum(before)
    names["update"].load_state_dict(learned.update.state_dict())
    network = names["build"]()
    optimizer = bilevel.updates.LearnedOptimizer(network.parameters(), names["update"])
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(task["x"]), task["y"])
        loss.backward()
        optimizer.step()
    assert loss < 1.2 * sum(after) / 5  # as well as the solves that it was trained in
