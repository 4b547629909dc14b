"""The recipes for followers that sample or infer, against closed forms and loops by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import bilevel
from tests.recipes import example, follow
from tests.valleys import F64

GANS = "A network as the follower: GANs"


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Any]:
    return follow(example(tmp_path), GANS)


def test_an_unrolled_gan_moves_both_from_the_same_point(names) -> None:
    """The generator through five steps of the discriminator, which takes one of its own."""
    game = names["unrolled_gan"]
    forger, judge = (player.double() for player in (game.leader, names["judge"].network))
    twins = copy.deepcopy((forger.generator, judge))
    players = forger.generator, judge
    game.leader_opt, game.solver_opt, *theirs = (
        torch.optim.SGD(network.parameters(), lr=0.1) for network in (*players, *twins)
    )
    generator, network = twins
    for _ in range(4):
        batch = {"real": torch.randn(32, 2).double(), "noise": torch.randn(32, 16).double()}
        game.step(batch)
        fake = generator(batch["noise"])

        def score(weights, x):
            return functional_call(network, weights, (x,))

        def gain(weights, fake, real=batch["real"]):
            real = F.logsigmoid(score(weights, real)).mean()
            return real + F.logsigmoid(-score(weights, fake)).mean()

        weights = dict(network.named_parameters())
        for _ in range(5):
            slopes = torch.autograd.grad(gain(weights, fake), weights.values(), create_graph=True)
            weights = {n: w + 0.1 * s for (n, w), s in zip(weights.items(), slopes, strict=True)}
        loss = -F.logsigmoid(score(weights, fake)).mean()
        slopes = torch.autograd.grad(loss, [*generator.parameters()])
        own = gain(dict(network.named_parameters()), fake.detach())
        slopes += torch.autograd.grad(-own, [*network.parameters()])
        for parameter, slope in zip(
            [*generator.parameters(), *network.parameters()], slopes, strict=True
        ):
            parameter.grad = slope
        for optimizer in theirs:
            optimizer.step()
    for ours, twin in zip(players, twins, strict=True):
        torch.testing.assert_close(ours.state_dict(), twin.state_dict())


def test_the_weights_after_each_step_are_averaged(names) -> None:
    """Also of a schedule that moves them after its last step of the optimizer."""
    gan, forger, seen = names["gan"], names["forger"], []
    gan.schedule, step = bilevel.Optimistic(), gan.step

    def watched(batch):
        step(batch)
        seen.append([p.detach().clone() for p in forger.generator.parameters()])

    gan.step = watched
    follow(names, "Averaged weights of the generator")
    assert len(seen) == 2
    for found, *pair in zip(names["averaged"].module.parameters(), *seen, strict=True):
        torch.testing.assert_close(found.detach(), 0.999 * pair[0] + 0.001 * pair[1])


def test_langevin_dynamics_sample_the_model(names) -> None:
    """For E = ½y² each step multiplies by 1 − η/2: the variance tends to 1 / (1 − η/4)."""
    follow(names, "Energy-based models")

    class Gaussian(bilevel.LeaderProblem):
        def energy(self, y):
            return y.square().sum(1, keepdim=True) / 2

        def loss(self, y, batch):
            return self.energy(y).mean()

    solver = bilevel.Iterative(names["Langevin"](0.8), steps=30)
    torch.manual_seed(0)
    samples = solver.solve(names["Samples"](), Gaussian(), torch.zeros(20000, 1)).value
    assert samples.var().item() == pytest.approx(1 / (1 - 0.8 / 4), rel=0.05)
    assert abs(samples.mean().item()) < 0.05


def test_an_energy_model_is_moved_along_the_gradient_of_its_likelihood(names) -> None:
    """Its chains go on from step to step."""
    follow(names, "Energy-based models")
    game, model = names["energy_game"], names["energy_model"]
    (kept, _), data = game.solver.kept, torch.randn(128, 2)
    torch.manual_seed(1)
    torch.randn_like(data)  # by init, whose form the kept chains have
    y = kept.clone()
    for _ in range(20):
        y.requires_grad_()
        (slope,) = torch.autograd.grad(model.energy(y).sum(), y)
        y = y.detach() - 0.05 * slope + 0.1**0.5 * torch.randn_like(y)
    expected = torch.autograd.grad(model.loss(y, data), [*model.parameters()])
    torch.manual_seed(1)
    game.step(data)
    for parameter, slope in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, slope)


def test_the_gradient_goes_through_the_inference_into_the_encoder(names) -> None:
    follow(names, "Inference that starts from an encoder")
    game, model = names["inference"], names["autoencoder"]
    batch = {"x": torch.randn(32, 5), "noise": torch.randn(32, 2)}
    y = model.encoder(batch["x"])
    for _ in range(5):
        total = model.free_energy(y, batch).sum()
        (slope,) = torch.autograd.grad(total, y, create_graph=True)
        y = y - 0.1 * slope
    expected = torch.autograd.grad(model.loss(y, batch), [*model.parameters()])
    metrics = game.step(batch)
    assert metrics["objective_before"] > metrics["loss"]
    for parameter, slope in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adjoint", [bilevel.Unrolled(), bilevel.Unrolled(recompute=True)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_momentum_and_decay_that_the_leader_learns(tmp_path, adjoint, decay) -> None:
    class Settings(bilevel.LeaderProblem):
        def __init__(self):
            super().__init__()
            self.log_lr = torch.nn.Parameter(torch.tensor(-2.0, dtype=F64))
            self.momentum_logit = torch.nn.Parameter(torch.tensor(0.5, dtype=F64))
            self.decay = torch.nn.Parameter(torch.tensor(decay, dtype=F64))

        def loss(self, y, batch):
            return (y["w"] - 1).square().sum()

    class Fit(bilevel.FollowerProblem):
        sense = "min"

        def init(self, batch):
            return {"w": torch.full((3,), 2.0, dtype=F64)}

        def objective(self, leader, y, batch):
            return (batch @ y["w"]).square().mean() + y["w"].exp().sum()

    leader, data = Settings(), torch.randn(8, 3, dtype=F64)
    update = follow(example(tmp_path), "A step size that the leader learns")["LeadersSGD"](leader)
    solver = bilevel.Iterative(update, steps=6)
    # Differences on both sides of a decay of 0 are of steps that torch.optim refuses below it.
    if decay:
        bilevel.testing.check_adjoint(adjoint, solver, Fit(), leader, data)
    loss = leader.loss(adjoint.solve(solver, Fit(), leader, data).value, data)
    (slope,) = torch.autograd.grad(loss, leader.decay)
    with torch.no_grad():
        leader.decay += 1e-6
        further = leader.loss(solver.solve(Fit(), leader, data).value, data)
    assert slope.item() == pytest.approx((further - loss).item() / 1e-6, rel=1e-3)
