"""docs/algorithms.md, adversarial training: the variants in words are those of a loop by hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import bilevel
from bilevel.robustness import Batch, Linf
from tests.docs.algorithms import PAGE, Move, assert_same, batches, sgd

EPS, STEP, STEPS = 0.1, 0.03, 3


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).double()


def perturbation(
    model: nn.Module, batch: Batch, loss: Callable[[Tensor, Batch], Tensor], steps: int = STEPS
) -> Tensor:
    """PGM by hand, in evaluation mode."""
    model.eval()
    delta = torch.zeros_like(batch.x)
    for _ in range(steps):
        delta.requires_grad_()
        (slope,) = torch.autograd.grad(loss(model(batch.x + delta), batch), delta)
        delta = Linf(EPS).project(delta.detach() + STEP * slope.sign(), batch)
    model.train()
    return delta


def cross_entropy(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits, batch.y, label_smoothing=smoothing)


def row(algorithm: str) -> tuple[bilevel.FollowerProblem, bilevel.Solver]:
    """The follower and the solver of a row of the table, in the mode of its authors."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {algorithm} (")]
    names = {"Linf": Linf, "pgm": partial(bilevel.pgm, leader_mode="train")}
    follower, solver = (eval(code, names) for code in re.findall(r"`(.*?)`", line))
    return follower, solver


@pytest.mark.parametrize(
    ("algorithm", "noise", "eps", "step", "steps"),
    [
        ("FGSM from a random start", 8 / 255, 8 / 255, 10 / 255, 1),
        ("N-FGSM", 16 / 255, 1.0, 8 / 255, 1),
        ("PGD", 0.031, 0.031, 0.007, 10),
    ],
)
def test_attacks_from_a_random_start_in_training_mode(
    algorithm: str, noise: float, eps: float, step: float, steps: int
) -> None:
    """All parameters are those of the authors; the running statistics are not."""
    ours, theirs, (threat, solver) = network(), network(), row(algorithm)
    leader, optimizer = bilevel.ZeroSum(ours, threat), sgd(theirs)
    game = bilevel.Bilevel(leader, threat, solver, leader_opt=sgd(ours))
    for k, batch in enumerate(batches()):
        torch.manual_seed(k)
        game.step(batch)
        torch.manual_seed(k)
        delta = torch.empty_like(batch.x).uniform_(-noise, noise)
        delta = (batch.x + delta).clamp(0, 1) - batch.x
        for _ in range(steps):
            delta.requires_grad_()
            (slope,) = torch.autograd.grad(cross_entropy(theirs(batch.x + delta), batch), delta)
            delta = (delta.detach() + step * slope.sign()).clamp(-eps, eps)
            delta = (batch.x + delta).clamp(0, 1) - batch.x
        optimizer.zero_grad()
        cross_entropy(theirs(batch.x + delta), batch).backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert (ours[1].num_batches_tracked, theirs[1].num_batches_tracked) == (3, 3 * (steps + 1))


def test_free_adversarial_training() -> None:
    """One pass of a replay gives both gradients; δ is kept from batch to batch."""
    ours, theirs, threat = network(), network(), Linf(EPS)
    passes: list[int] = []
    ours.register_forward_hook(lambda *_: passes.append(1))
    start = torch.zeros(8, 1, 6, 6).double()
    solver = bilevel.Parametric(start)
    signs = torch.optim.Adam(solver.parameters(), lr=EPS, betas=(0.0, 0.0), eps=1e-20)
    leader = bilevel.ZeroSum(ours, threat)
    game = bilevel.Bilevel(leader, threat, solver, leader_opt=sgd(ours), solver_opt=signs)
    delta, optimizer = start, sgd(theirs)
    for batch in batches():
        for _ in range(2):
            game.step(batch)
            delta = threat.project(delta, batch).requires_grad_()
            optimizer.zero_grad()
            cross_entropy(theirs(batch.x + delta), batch).backward()
            optimizer.step()
            delta = threat.project(delta.detach() + EPS * delta.grad.sign(), batch)
    assert_same(ours, theirs)
    assert len(passes) == 6


def test_mixup_with_label_smoothing() -> None:
    ours, theirs = network(), network()

    def smoothed(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, batch.y, reduction="none", label_smoothing=0.1)

    threat = Linf(EPS, loss=smoothed)
    leader = bilevel.ZeroSum(ours, threat)
    game = bilevel.Bilevel(leader, threat, bilevel.pgm(STEP, STEPS), leader_opt=sgd(ours))
    optimizer = sgd(theirs)
    for x, y in batches():
        labels = 0.7 * F.one_hot(y, 3).double() + 0.3 * F.one_hot(y.flip(0), 3)
        batch = Batch(0.7 * x + 0.3 * x.flip(0), labels)
        game.step(batch)
        delta = perturbation(theirs, batch, lambda *given: cross_entropy(*given, smoothing=0.1))
        optimizer.zero_grad()
        cross_entropy(theirs(batch.x + delta), batch, smoothing=0.1).backward()
        optimizer.step()
    assert_same(ours, theirs)


def mart(model: nn.Module, delta: Tensor, batch: Batch) -> Tensor:
    """Boosted cross entropy, and KL weighted by how unsure the clean image's class is."""
    moved, clean = model(batch.x + delta), model(batch.x)
    p, q = moved.softmax(1), clean.softmax(1)
    wrong = p.masked_fill(F.one_hot(batch.y, 3).bool(), 0).amax(1)
    unsure = 1 - q.gather(1, batch.y[:, None]).squeeze(1)
    divergence = F.kl_div(moved.log_softmax(1), q, reduction="none").sum(1)
    return cross_entropy(moved, batch) + (5 * divergence * unsure - (1 - wrong).log()).mean()


def grad_align(model: nn.Module, delta: Tensor, batch: Batch) -> Tensor:
    """The gradients at the image and beside it point the same way."""
    slopes = []
    for shift in (0.0, 0.05):
        x = (batch.x + shift * batch.x.cos()).requires_grad_()
        loss = cross_entropy(model(x), batch)
        slopes.append(torch.autograd.grad(loss, x, create_graph=True)[0].flatten(1))
    aligned = F.cosine_similarity(*slopes).mean()
    return cross_entropy(model(batch.x + delta), batch) + 0.2 * (1 - aligned)


@pytest.mark.parametrize(("loss", "steps"), [(mart, STEPS), (grad_align, 1)])
def test_a_leader_with_a_loss_of_its_own(loss: Move, steps: int) -> None:
    class Own(bilevel.LeaderProblem):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def loss(self, delta: Tensor, batch: Batch) -> Tensor:
            return loss(self.model, delta, batch)

    ours, theirs, threat = network(), network(), Linf(EPS)
    leader, detached = Own(ours), bilevel.Detached()
    solver = bilevel.pgm(STEP, steps)
    game = bilevel.Bilevel(leader, threat, solver, leader_opt=sgd(ours), adjoint=detached)
    optimizer = sgd(theirs)
    for batch in batches():
        game.step(batch)
        delta = perturbation(theirs, batch, cross_entropy, steps)
        optimizer.zero_grad()
        loss(theirs, delta, batch).backward()
        optimizer.step()
    assert_same(ours, theirs)


class WithWeights(bilevel.FollowerProblem):
    """max over δ and v of the loss of the weights θ + v at x + δ."""

    sense = "max"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def init(self, batch: Batch) -> dict[str, Tensor]:
        weights = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        return {"delta": torch.zeros_like(batch.x), **weights}

    def objective(self, leader: bilevel.ZeroSum, y: dict[str, Tensor], batch: Batch) -> Tensor:
        moved = {name: p + y[name] for name, p in leader.model.named_parameters()}
        return cross_entropy(functional_call(leader.model, moved, batch.x + y["delta"]), batch)

    def project(self, y: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {**y, "delta": Linf(EPS).project(y["delta"], batch)}


class ImagesThenWeights(bilevel.Solver):
    """PGM on δ; then each matrix moves along its gradient, by a share of its own length."""

    def answer(self, oracle: bilevel.Oracle) -> dict[str, Tensor]:
        y = oracle.init()
        for _ in range(STEPS):
            slope = oracle.gradient(y)["delta"]
            y = oracle.project({**y, "delta": y["delta"] + STEP * slope.sign()})
        slopes = oracle.gradient(y)
        for name, weight in oracle.leader.model.named_parameters():
            if weight.dim() > 1:
                y[name] = 0.01 * weight.norm() * slopes[name] / slopes[name].norm()
        return y


def test_adversarial_weight_perturbation() -> None:
    ours, theirs = network(), network()
    follower = WithWeights(ours)
    leader, solver = bilevel.ZeroSum(ours, follower), ImagesThenWeights()
    game = bilevel.Bilevel(leader, follower, solver, leader_opt=sgd(ours))
    optimizer = sgd(theirs)
    for batch in batches():
        game.step(batch)
        delta = perturbation(theirs, batch, cross_entropy)
        beside = copy.deepcopy(theirs).eval()
        cross_entropy(beside(batch.x + delta), batch).backward()
        slopes = [p.grad.clone() for p in beside.parameters()]
        moved = [
            p.detach() + 0.01 * p.detach().norm() * slope / slope.norm() if p.dim() > 1 else p
            for p, slope in zip(theirs.parameters(), slopes, strict=True)
        ]
        names = [name for name, _ in theirs.named_parameters()]
        there = {n: w.detach().requires_grad_() for n, w in zip(names, moved, strict=True)}
        logits = functional_call(theirs, there, batch.x + delta)
        grads = torch.autograd.grad(cross_entropy(logits, batch), [*there.values()])
        for p, grad in zip(theirs.parameters(), grads, strict=True):
            p.grad = grad
        optimizer.step()
    assert_same(ours, theirs)


class OnThePath(bilevel.FollowerProblem):
    """The mean of the loss over K perturbations, ``(B, K, C, H, W)``."""

    sense = "max"

    def __init__(self, threat: Linf) -> None:
        self.threat = threat

    def init(self, batch: Batch) -> Tensor:
        return self.threat.init(batch)[:, None]

    def objective(self, leader: bilevel.ZeroSum, y: Tensor, batch: Batch) -> Tensor:
        losses = [self.threat.objective(leader, delta, batch) for delta in y.unbind(1)]
        return torch.stack(losses).mean(0)


class Points(bilevel.Iterative):
    """The start and the points after each step but the last."""

    def answer(self, oracle: bilevel.Oracle) -> Tensor:
        problem = oracle.of(oracle.follower.threat)
        path, state = [problem.init()], None
        for _ in range(self.steps - 1):
            y, state = problem.advance(self.update, path[-1], state, steps=1)
            path.append(y)
        return torch.stack(path, 1)


def test_the_mean_over_the_path() -> None:
    """FreeLB by hand takes both gradients of a point from one pass: K of them, not 2K − 1."""
    ours = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    theirs, threat = copy.deepcopy(ours), Linf(EPS)
    passes: list[int] = []
    ours.register_forward_hook(lambda *_: passes.append(1))
    follower = OnThePath(threat)
    solver = Points(bilevel.updates.SignGradient(STEP), STEPS)
    leader = bilevel.ZeroSum(ours, follower)
    game = bilevel.Bilevel(leader, follower, solver, leader_opt=sgd(ours))
    optimizer = sgd(theirs)
    for batch in batches():
        game.step(batch)
        delta = torch.zeros_like(batch.x)
        optimizer.zero_grad()
        for _ in range(STEPS):
            delta.requires_grad_()
            loss = cross_entropy(theirs(batch.x + delta), batch)
            (loss / STEPS).backward()
            delta = threat.project(delta.detach() + STEP * delta.grad.sign(), batch)
        optimizer.step()
    assert_same(ours, theirs)
    assert len(passes) == 3 * (2 * STEPS - 1)
