"""The recipes for training and for games run as they are printed, and do what the page says."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten

import bilevel
from bilevel.robustness import Batch
from tests.recipes import RECIPES, example, flat, follow


def test_what_the_network_computes_on_the_way(tmp_path) -> None:
    """The accuracy is that of the outputs on which the leader's loss was taken."""
    names = example(tmp_path)
    x, y = names["loader"][-1]
    names["loader"] = [(x, y)]  # the first steps of the recipe move both players
    follow(names, "Log metrics")
    outputs, means = names["seen"]["last"], names["log"].means()
    assert F.cross_entropy(outputs, y).item() == pytest.approx(means["loss"], rel=1e-6)
    assert means["robust accuracy"] == (outputs.argmax(1) == y).float().mean().item()


def test_an_evaluation_moves_nothing(tmp_path) -> None:
    """Neither a warm start, nor statistics of batch normalisation, nor the random state."""
    names = example(tmp_path)
    x, y = names["loader"][0]
    names["model"].append(nn.BatchNorm1d(4, affine=False))
    names["solver"] = names["game"].solver = bilevel.Iterative(
        bilevel.updates.SignGradient(0.01), 2, warm_start=True
    )
    names["game"].solver_opt = None
    names["follower"].start = 0.01
    names["game"].step(Batch(x, y))
    state, random = copy.deepcopy(names["game"].state_dict()), torch.get_rng_state()
    loss = follow(names, "Evaluate")["evaluate"](x, y)
    assert 0 < loss < 10
    now, before = (tree_flatten(one)[0] for one in (names["game"].state_dict(), state))
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(now, before, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert names["model"].training


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


def test_another_schedule_goes_on_with_the_same_players(tmp_path) -> None:
    names = example(tmp_path)
    x, y = names["loader"][0]
    names["game"].step(Batch(x, y))
    before, adam = flat(names["leader"]), names["game"].solver_opt
    follow(names, "Change parts on the way")
    game = names["game"]
    assert isinstance(game.schedule, bilevel.Extragradient)
    assert torch.equal(flat(game.leader), before)
    game.step(Batch(x, y))
    assert all(state["step"] > 1 for state in adam.state.values())


def test_the_best_epoch_is_kept(tmp_path) -> None:
    names = follow(example(tmp_path), "Keep the best epoch")
    assert names["epoch"] > names["best_epoch"]
    assert names["held_out_accuracy"](*names["held_out"]) == names["best"] > names["score"]


def test_mixed_precision_and_compilation(tmp_path) -> None:
    names = example(tmp_path)
    before = list(names["game"].state_dict()["leader"])
    follow(names, "Mixed precision and compilation")
    assert list(names["game"].state_dict()["leader"]) == before
    assert names["metrics"]["loss"].isfinite()


def test_a_distributed_checkpoint_is_loaded_into_a_game_that_has_moved(tmp_path) -> None:
    saving, loading = RECIPES["Inside other frameworks"][-1].split("\n\n", 2)[1:]
    names, again = example(tmp_path), example(tmp_path)
    for run in (names, again):
        exec("import torch.distributed.checkpoint as dcp", run)
        optimizer = torch.optim.SGD(run["leader"].parameters(), lr=0.1, momentum=0.9)
        run["game"].leader_opt = optimizer
    for x, y in names["loader"]:
        names["game"].step(Batch(x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # there is one process
        exec(saving, names)
        exec(loading, again)
    for run in (names, again):
        for x, y in names["loader"]:
            run["game"].step(Batch(x, y))
    assert names["game"].steps == again["game"].steps == 8
    assert torch.equal(flat(names["leader"]), flat(again["leader"]))
    assert torch.equal(flat(names["solver"]), flat(again["solver"]))


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


@pytest.mark.parametrize(
    "part",
    [
        {"adjoint": bilevel.Unrolled()},
        {"adjoint": bilevel.Implicit()},
        {"adjoint": bilevel.Forward()},
        {"schedule": bilevel.Consensus(0.1)},
        {"schedule": bilevel.CompetitiveGradient()},
    ],
    ids=lambda part: "".join(map(repr, part.values())),
)
def test_nothing_differentiates_the_mirrored_gradient(tmp_path, part) -> None:
    names = follow(example(tmp_path), "Points of the simplex")
    fair, solver = names["fair"], bilevel.Iterative(bilevel.updates.Gradient(0.1), 3)
    optimizers = {"leader_opt": torch.optim.SGD(fair.parameters(), lr=0.1)}
    if "schedule" in part:
        solver = names["weights"]
        optimizers["solver_opt"] = torch.optim.SGD(solver.parameters(), lr=0.01)
    game = bilevel.Bilevel(fair, names["worst"], solver, **optimizers, **part)
    with pytest.raises(bilevel.BilevelError, match="marked @once_differentiable"):
        game.step(names["samples"])


class Prices(bilevel.LeaderProblem):
    """Prices u of three goods, and a leader who wants the third one bought."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.tensor([0.2, -0.3, 0.4]).double())

    def loss(self, y, batch):
        return -y[2] + self.u.square().sum()


class Buyer(bilevel.FollowerProblem):
    """Max over the simplex of y·u − ½ ∑ y log y: y = softmax(2u)."""

    sense = "max"

    def init(self, batch):
        return torch.full((3,), 1 / 3).double()

    def objective(self, leader, y, batch):
        return y @ leader.u - (y * y.log()).sum() / 2


def test_weights_have_a_hypergradient(tmp_path) -> None:
    step = follow(example(tmp_path), "Points of the simplex")["Multiplicative"](0.5)
    leader, solver = Prices(), bilevel.Iterative(step, 60)
    answer = torch.softmax(2 * leader.u, 0)
    (expected,) = torch.autograd.grad(leader.loss(answer, None), leader.u)
    at_the_end = bilevel.Implicit(fixed_point=step, tolerance=1e-10)
    for adjoint in (bilevel.Unrolled(), bilevel.Forward(), bilevel.Penalty(1e3), at_the_end):
        solution = adjoint.solve(solver, Buyer(), leader, None)
        torch.testing.assert_close(solution.value.detach(), answer.detach())
        (slope,) = torch.autograd.grad(leader.loss(solution.value, None), leader.u)
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)


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


class Reversed(torch.autograd.Function):
    """A gradient-reversal layer (Ganin et al., 2016)."""

    @staticmethod
    def forward(ctx, features):
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient):
        return -0.1 * gradient


def test_domain_adaptation_is_gradient_reversal(tmp_path) -> None:
    names = follow(example(tmp_path), "A network as the follower: GANs")
    follow(names, "Gradient reversal: domain adaptation")
    model, judge, game = (names[name] for name in ("adapted", "domains", "adaptation"))
    parts = nn.ModuleList([*model.model.values(), judge.network])
    features, classes, domains = by_hand = copy.deepcopy(parts)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for _ in range(3):
        x, y = torch.randn(32, 5), torch.randint(2, (16,))
        game.step({"x": x, "y": y, "domain": names["domain"]})
        found = features(x)
        loss = F.cross_entropy(classes(found[:16]), y)
        optimizer.zero_grad()
        (loss + F.cross_entropy(domains(Reversed.apply(found)), names["domain"])).backward()
        optimizer.step()
    torch.testing.assert_close(flat(parts), flat(by_hand))


def test_codes_that_are_kept_are_learned_and_those_found_anew_are_not(tmp_path) -> None:
    errors = {}
    for kept in (True, False):
        names = example(tmp_path)
        torch.manual_seed(0)
        code = RECIPES["Answers that are kept for each sample"][0]
        exec(code if kept else code.replace('self.last[batch["rows"]] = z', "pass"), names)
        x, codes, decoder = names["x"], names["codes"], names["decoding"].decoder
        start = codes.init({"rows": torch.arange(40)})
        z = names["game"].solver.solve(codes, names["decoding"], {"x": x, "rows": torch.arange(40)})
        errors[kept] = (decoder(z.value) - x).square().sum().item() / x.square().sum().item()
        assert torch.equal(codes.last, start)
        assert "last" in str(names["game"].state_dict()["follower"].keys())
    assert errors[True] < 0.05 < errors[False] / 4


def test_answers_that_follow_each_other(tmp_path) -> None:
    """Each stock is (1 − θ_t + before) / 2."""
    names = follow(example(tmp_path), "Answers that follow each other")
    prices = names["seller"].prices
    stock, stocks = torch.tensor([0.0, 0.5]), []
    for price in prices:
        stock = (1 - price + stock) / 2
        stocks.append(stock)
    torch.testing.assert_close(torch.stack(names["stocks"]), torch.stack(stocks))
    (slope,) = torch.autograd.grad((torch.stack(stocks) - 0.4).square().sum(), prices)
    torch.testing.assert_close(prices.grad, slope)
