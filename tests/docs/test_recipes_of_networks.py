"""The recipes for networks beside the two players, as they are printed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilevel
from tests.recipes import example, flat, follow


def network() -> nn.Module:
    """With a matrix to decay, norms and biases not to."""
    return nn.Sequential(
        nn.Linear(8, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3, bias=False)
    ).double()


class Weighted(bilevel.LeaderProblem):
    """A weight for each sample of the training set."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.zeros(12, dtype=torch.float64))

    def loss(self, y, batch):
        return sum(weight.square().sum() for weight in y.values())


class Train(bilevel.FollowerProblem):
    sense = "min"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = network()

    def init(self, batch):
        return {name: weight.detach() for name, weight in self.network.named_parameters()}

    def objective(self, leader, weights, batch):
        logits = torch.func.functional_call(self.network, weights, batch["x"])
        losses = F.cross_entropy(logits, batch["y"], reduction="none")
        return (leader.log_weights.exp() * losses).mean()


@pytest.fixture
def training(tmp_path) -> bilevel.Update:
    """The update of the recipe, with a norm that most gradients exceed."""
    names = follow(example(tmp_path), "Train a network within the solve")
    return names["Training"](lr=0.1, warmup=4, max_norm=0.2, weight_decay=0.3)


TASK = {"x": torch.randn(12, 8, dtype=torch.float64), "y": torch.arange(12) % 3}


def test_a_network_is_trained_as_by_torch(training) -> None:
    follower, leader, norms = Train(), Weighted(), []
    weights = bilevel.Iterative(training, 8).solve(follower, leader, TASK).value
    parameters = list(follower.network.parameters())
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = {"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0}
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 4))
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(follower.network(TASK["x"]), TASK["y"]).backward()
        norms.append(nn.utils.clip_grad_norm_(parameters, max_norm=0.2))
        optimizer.step()
        warmup.step()
    assert max(norms) > 0.2  # some were clipped
    torch.testing.assert_close(weights, dict(follower.network.named_parameters()))


def test_the_training_of_a_network_is_differentiated_and_goes_on(training) -> None:
    follower, leader = Train(), Weighted()
    for adjoint in (bilevel.Unrolled(), bilevel.Unrolled(recompute=True)):
        solver = bilevel.Iterative(training, 5)
        bilevel.testing.check_adjoint(adjoint, solver, follower, leader, TASK)
    whole = bilevel.Iterative(training, 6).solve(follower, leader, TASK).value
    windows = bilevel.Iterative(training, 3, warm_start=True)
    windows.solve(follower, leader, TASK)
    again = bilevel.Iterative(training, 3, warm_start=True)
    again.load_state_dict(windows.state_dict())
    torch.testing.assert_close(again.solve(follower, leader, TASK).value, whole)


def test_features_that_are_computed_once(tmp_path) -> None:
    """ANIL by hand: one pass of the body for each part of a task, a start that is learned."""
    game = follow(example(tmp_path), "Features that are computed once")["anil"]
    network = game.leader.double()
    theirs, passes = copy.deepcopy(network), []
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    network.body.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(4):
        batch = {part: torch.randn(10, 8).double() for part in ("support", "query")}
        batch |= {f"{part} labels": torch.arange(10) % 5 for part in ("support", "query")}
        support, query = theirs.body(batch["support"]), theirs.body(batch["query"])
        head = tuple(theirs.head.parameters())
        for _ in range(5):
            loss = F.cross_entropy(F.linear(support, *head), batch["support labels"])
            slopes = torch.autograd.grad(loss, head, create_graph=True)
            head = tuple(p - 0.5 * slope for p, slope in zip(head, slopes, strict=True))
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(query, *head), batch["query labels"])
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(game.step(batch)["loss"], loss.detach())
    assert len(passes) == 2 * 4
    torch.testing.assert_close(network.state_dict(), theirs.state_dict())


def two_copies(tmp_path) -> tuple[nn.Module, nn.Module]:
    return example(tmp_path)["model"], example(tmp_path)["model"]


def test_a_teacher_follows_the_leader_and_tells_what_to_answer(tmp_path) -> None:
    names, (model, teacher) = example(tmp_path), two_copies(tmp_path)
    torch.manual_seed(1)
    follow(names, "A teacher that averages the leader")
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in names["loader"]:
        told = teacher(x).log_softmax(1).detach()

        def consistency(delta, x=x, told=told):
            answer = model(x + delta).log_softmax(1)
            return (told.exp() * (told - answer)).sum(1)

        delta = 8 / 255 * (2 * torch.rand_like(x) - 1)
        for _ in range(3):
            delta.requires_grad_()
            (slope,) = torch.autograd.grad(consistency(delta).sum(), delta)
            delta = (delta.detach() + 2 / 255 * slope.sign()).clamp(-8 / 255, 8 / 255)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + consistency(delta).mean()).backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(teacher.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 1.0 if x is names["loader"][0][0] else 0.01)
    torch.testing.assert_close(flat(names["model"]), flat(model))
    torch.testing.assert_close(flat(names["teacher"]), flat(teacher))
    assert not torch.equal(flat(teacher), flat(model))
    assert "follower.teacher" in names["game"].state_dict()
