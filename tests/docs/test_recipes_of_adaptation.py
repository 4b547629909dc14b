"""The recipes for adaptation and hypernetworks, against loops by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

import bilevel
from tests.recipes import RECIPES, example, flat, follow
from tests.valleys import F64

HEAD = r"ignores the leader's head\.weight, head\.bias:"


@pytest.fixture
def adaptation(tmp_path: Path) -> dict[str, Any]:
    with pytest.warns(bilevel.HypergradientWarning, match=HEAD):
        return follow(example(tmp_path), "Adapt at test time")


@pytest.fixture
def responses(tmp_path: Path) -> dict[str, Any]:
    return follow(example(tmp_path), "A best response that is a network")


def tent_by_hand(classifier: nn.Module, batches: list[Tensor], steps: int) -> nn.Module:
    adapted = copy.deepcopy(classifier).train().requires_grad_(False)
    norm = adapted[1].requires_grad_(True)
    norm.running_mean = norm.running_var = None
    optimizer = torch.optim.Adam(norm.parameters(), lr=1e-3)
    for batch in batches:
        for _ in range(steps):
            optimizer.zero_grad()
            log_p = adapted(batch).log_softmax(1)
            (-(log_p.exp() * log_p).sum(1).mean()).backward()
            optimizer.step()
    return adapted


def trained(adapted: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("training", [True, False])
def test_tent_adapts_what_normalises_and_leaves_the_network(adaptation, training) -> None:
    classifier, data = adaptation["classifier"].train(training), adaptation["shifted"]
    classifier(torch.randn(16, 5))  # in training mode this moves the running statistics
    before = copy.deepcopy(classifier.state_dict())
    leader = bilevel.ZeroSum(classifier, adaptation["entropy"])
    weights = adaptation["tent"].solve(adaptation["entropy"], leader, data).value
    adapted = tent_by_hand(classifier, [data], steps=5)
    torch.testing.assert_close(weights, trained(adapted))
    assert (weights["1.weight"] - before["1.weight"]).abs().min() > 1e-3
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name])
    assert classifier.training is training


def test_tent_predicts_by_the_statistics_of_the_batch(tmp_path: Path) -> None:
    """The code up to the game of the section, whose predictions have the same name."""
    names = example(tmp_path)
    exec(RECIPES["Adapt at test time"][0], names)
    adapted = tent_by_hand(names["classifier"], [names["shifted"]], steps=5)
    assert torch.equal(names["predicted"], adapted(names["shifted"]).argmax(1))
    assert names["classifier"][1].num_batches_tracked == 0


def test_tent_goes_on_from_batch_to_batch(adaptation) -> None:
    classifier, entropy = adaptation["classifier"], adaptation["entropy"]
    online = bilevel.Iterative(adaptation["adam"], steps=1, leader_mode="train", warm_start=True)
    batches = [torch.randn(size, 5) for size in (64, 64, 30)]
    for batch in batches:
        weights = online.solve(entropy, bilevel.ZeroSum(classifier, entropy), batch).value
    adapted = tent_by_hand(classifier, batches, steps=1)
    torch.testing.assert_close(weights, trained(adapted))


def labelled() -> Iterator[dict[str, Tensor]]:
    for _ in range(4):
        mask = (torch.rand(32, 5, dtype=F64) > 0.3).double()
        x = torch.randn(32, 5, dtype=F64)
        yield {"x": x, "mask": mask, "y": torch.randint(3, (32,))}


def steps_of_the_encoder(network: Any, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    weights = dict(network.encoder.named_parameters())
    for _ in range(2):
        filled = network.decoder(functional_call(network.encoder, weights, (x * mask,)))
        error = (filled - x).square().mean()
        slopes = torch.autograd.grad(error, weights.values(), create_graph=True)
        weights = {n: w - 0.1 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
    return weights


def test_test_time_training_is_differentiated_through_its_steps(adaptation) -> None:
    game, ours = adaptation["test_time"], adaptation["adaptive"].double()
    theirs = copy.deepcopy(ours)
    game.leader_opt, optimizer = (torch.optim.SGD(m.parameters(), lr=0.5) for m in (ours, theirs))
    for batch in labelled():
        game.step(batch)
        weights = steps_of_the_encoder(theirs, batch["x"], batch["mask"])
        logits = theirs.head(functional_call(theirs.encoder, weights, (batch["x"],)))
        optimizer.zero_grad()
        F.cross_entropy(logits, batch["y"]).backward()
        optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    unlabelled = {"x": batch["x"], "mask": batch["mask"]}
    weights = steps_of_the_encoder(theirs, **unlabelled)
    torch.testing.assert_close(dict(game.solve(unlabelled).value), weights)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_each_sample_has_an_encoder_of_its_own(adaptation) -> None:
    """By the sentence on y of shape (B, m)."""
    ours = adaptation["adaptive"].double()

    def features(y: Tensor, x: Tensor) -> Tensor:
        parts = y.split([p.numel() for p in ours.encoder.parameters()])
        named = zip(ours.encoder.named_parameters(), parts, strict=True)
        return functional_call(ours.encoder, {n: q.view(p.shape) for (n, p), q in named}, (x,))

    class EachFilled(adaptation["Reconstruction"]):
        def init(self, batch):
            vector = nn.utils.parameters_to_vector(self.leader.encoder.parameters())
            return vector.expand(len(batch["x"]), -1)

        def objective(self, leader, y, batch):
            filled = leader.decoder(vmap(features)(y, batch["x"] * batch["mask"]))
            return (filled - batch["x"]).square().mean(1)

    solver = bilevel.Iterative(bilevel.updates.Gradient(0.1), steps=2)
    batch = next(labelled())
    y = solver.solve(EachFilled(ours), ours, batch).value
    for row, x, mask in zip(y, batch["x"], batch["mask"], strict=True):
        weights = steps_of_the_encoder(ours, x[None], mask[None])
        torch.testing.assert_close(row, nn.utils.parameters_to_vector(weights.values()))


class Regression:
    """A regression on features of unlike scales, in closed form."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(80, 5) * torch.linspace(0.3, 1.5, 5)
        t = x[:, :2].sum(1) + torch.randn(80)
        (self.x, self.vx), (self.t, self.vt) = x.split([30, 50]), t.split([30, 50])

    def batch(self) -> dict[str, Tensor]:
        validation = {"validation x": self.vx, "validation t": self.vt}
        return {"x": self.x, "t": self.t, "noise": 0.5 * torch.randn(16), **validation}

    def inner(self, w: Tensor, log_penalty: Tensor) -> Tensor:
        errors = (w @ self.x.T - self.t).square().mean(1)
        return (errors + log_penalty.exp() * w.square().sum(1)).mean()

    def outer(self, w: Tensor) -> Tensor:
        return (w @ self.vx.T - self.vt).square().mean()

    def ridge(self, log_penalty: Tensor) -> Tensor:
        gram = self.x.T @ self.x / len(self.x) + log_penalty.exp() * torch.eye(5)
        return torch.linalg.solve(gram, self.x.T @ self.t / len(self.x))

    def best(self) -> Tensor:
        """The logarithm of the penalty that validates best, on a grid."""
        grid = torch.linspace(-5, 2, 701)
        return grid[torch.stack([self.outer(self.ridge(at)[None]) for at in grid]).argmin()]


def set_optimizers(game: bilevel.Bilevel, lr: float) -> None:
    game.leader_opt = torch.optim.Adam(game.leader.parameters(), lr=lr)
    game.solver_opt = torch.optim.Adam(game.solver.parameters(), lr=lr)


FORMS = "tuning", "amortised_tuning"


@pytest.mark.parametrize("form", FORMS)
def test_self_tuning_by_hand(responses, form) -> None:
    """In the first form the hypernetwork moves before λ does, in the second at once."""
    game, problem = responses[form], Regression()
    network = copy.deepcopy(getattr(game.solver, "y" if form == "tuning" else "network"))
    log_penalty = game.leader.log_penalty.detach().clone().requires_grad_()
    set_optimizers(game, 0.01)
    leader_opt = torch.optim.Adam([log_penalty], lr=0.01)
    solver_opt = torch.optim.Adam(network.parameters(), lr=0.01)

    def slope(at: Tensor) -> Tensor:
        return torch.autograd.grad(problem.outer(network(at[:, None])), log_penalty)[0]

    for _ in range(10):
        batch = problem.batch()
        game.step(batch)
        near = log_penalty + batch["noise"]
        before, fixed = slope(near), near.detach()
        solver_opt.zero_grad()
        problem.inner(network(fixed[:, None]), fixed).backward()
        solver_opt.step()
        log_penalty.grad = slope(log_penalty) if form == "tuning" else before
        leader_opt.step()
    torch.testing.assert_close(game.leader.log_penalty, log_penalty)
    torch.testing.assert_close(flat(game.solver), flat(network))


@pytest.mark.parametrize("form", FORMS)
def test_self_tuning_finds_the_best_penalty(responses, form) -> None:
    game, problem = responses[form], Regression()
    network = getattr(game.solver, "y" if form == "tuning" else "network")
    set_optimizers(game, 0.02)
    for _ in range(500):
        game.step(problem.batch())
    found = game.leader.log_penalty.detach()
    assert found.item() == pytest.approx(problem.best().item(), abs=0.1)
    torch.testing.assert_close(
        network(found[:, None])[0].detach(), problem.ridge(found), rtol=0, atol=0.02
    )


def test_the_second_form_has_the_players_of_any_other_solver(responses) -> None:
    problem, tuned = Regression(), responses["tuned"]
    solver, batch = bilevel.Iterative(bilevel.updates.Gradient(0.1), steps=1000), problem.batch()
    w = solver.solve(responses["Near"](), tuned, batch).value
    expected = [problem.ridge(tuned.log_penalty.detach() + noise) for noise in batch["noise"]]
    torch.testing.assert_close(w, torch.stack(expected), rtol=1e-3, atol=1e-4)
