"""Updates as optimizers of torch: known optimizers, the steps of a game, and a run that goes on."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.torch_version import TorchVersion

from bilevel import Bilevel, BilevelError, Detached, FollowerProblem, Iterative, ZeroSum, pgm
from bilevel.updates import (
    CNN,
    MLP,
    CoordinateMLP,
    CoordinateRNN,
    Gradient,
    LearnedOptimizer,
    Momentum,
    NormalizedGradient,
    Optimizer,
    SignGradient,
    Update,
)


class Fit(FollowerProblem):
    """The weights of a network that fits the batch."""

    sense = "min"

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def init(self, batch):
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}

    def objective(self, leader, weights, batch):
        return F.mse_loss(functional_call(self.network, weights, batch[0]), batch[1])


def regression() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    batches = [(torch.randn(8, 3).double(), torch.randn(8, 2).double()) for _ in range(6)]
    return network, batches


def train(network: nn.Module, optimizer: torch.optim.Optimizer, batches) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        F.mse_loss(network(x), y).backward()
        optimizer.step()


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize(
    ("update", "known"),
    [
        (Gradient(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (Momentum(Gradient(0.1), 0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (Optimizer(torch.optim.Adam, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
    ],
    ids=["gradient", "momentum", "adam"],
)
def test_known_updates_are_known_optimizers(update, known) -> None:
    network, batches = regression()
    twin = copy.deepcopy(network)
    train(network, LearnedOptimizer(network.parameters(), update), batches)
    train(twin, known(twin.parameters()), batches)
    torch.testing.assert_close(flat(network), flat(twin))


def test_its_steps_are_those_that_were_trained() -> None:
    """The steps of a warm-started solve that minimises the same loss."""
    network, batches = regression()
    update = CoordinateRNN(0.1, gradient_skip=0.1).double()
    nn.init.normal_(update.last.weight)
    solver, fit = Iterative(update, 1, warm_start=True), Fit(copy.deepcopy(network))
    for batch in batches:
        weights = solver.solve(fit, ZeroSum(nn.Identity(), fit), batch).value
    train(network, LearnedOptimizer(network.parameters(), update), batches)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name].detach())


def test_a_saved_run_goes_on_bit_for_bit() -> None:
    network, batches = regression()
    update = CoordinateRNN(0.1, gradient_skip=0.1).double()
    optimizer = LearnedOptimizer(network.parameters(), update)
    train(network, optimizer, batches[:3])
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(network, optimizer, batches[3:])
    file.seek(0)
    saved, (again, _) = torch.load(file, weights_only=True), regression()
    again.load_state_dict(saved["network"])
    optimizer = LearnedOptimizer(again.parameters(), update)
    optimizer.load_state_dict(saved["optimizer"])
    train(again, optimizer, batches[3:])
    assert torch.equal(flat(again), flat(network))


class Counted(Gradient):
    """Its state is the number of its steps, which decides their size."""

    def forward(self, y, gradient, context, state=None):
        number = torch.zeros((), dtype=torch.int64) if state is None else state
        smaller = {name: g / (number + 1) for name, g in gradient.items()}
        return super().forward(y, smaller, context, None)[0], number + 1


def test_state_keeps_its_types_beside_half_precision() -> None:
    def optimizer(update: Update) -> LearnedOptimizer:
        parameters = [nn.Parameter(torch.ones(2).bfloat16()), nn.Parameter(torch.ones(2))]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        return LearnedOptimizer(parameters, update)

    for update in (Counted(0.1), Optimizer(torch.optim.Adam, lr=0.1)):
        first, second = optimizer(update), optimizer(update)
        for _ in range(299):
            first.step()
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        (own,), (loaded,) = first.state.values(), second.state.values()
        torch.testing.assert_close(loaded, own, rtol=0, atol=0)
        second.step()


def test_a_copied_optimizer_goes_on() -> None:
    network, batches = regression()
    optimizer = LearnedOptimizer(network.parameters(), Momentum(Gradient(0.1), 0.9))
    train(network, optimizer, batches[:3])
    again, other = copy.deepcopy((network, optimizer))
    train(network, optimizer, batches[3:])
    train(again, other, batches[3:])
    assert torch.equal(flat(again), flat(network))


def test_a_schedule_takes_a_part_of_each_step() -> None:
    network, batches = regression()
    twin = copy.deepcopy(network)
    optimizer = LearnedOptimizer(network.parameters(), Gradient(0.2))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    known = torch.optim.SGD(twin.parameters(), lr=0.2)
    for number, batch in enumerate(batches):
        known.param_groups[0]["lr"] = 0.2 / 2**number
        train(network, optimizer, [batch])
        train(twin, known, [batch])
        schedule.step()
    torch.testing.assert_close(flat(network), flat(twin))


def test_groups_closures_and_parameters_without_a_gradient() -> None:
    weight, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [weight], "lr": 0.5}, {"params": [other]}]
    optimizer = LearnedOptimizer(groups, Gradient(1.0))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (3 * weight).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 6
    assert weight.tolist() == [-0.5, -0.5]
    assert other.tolist() == [1, 1]


def test_an_update_in_place_is_as_good_as_another() -> None:
    """With it, too, a part of the step is taken, and by parameters with a gradient alone."""

    class InPlace(Update):
        def forward(self, y, gradient, context, state):
            return {name: leaf.add_(gradient[name] - 1) for name, leaf in y.items()}, state

    weight, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = LearnedOptimizer([weight, other], InPlace(), lr=0.5)
    (3 * weight).sum().backward()
    optimizer.step()
    assert weight.tolist() == [-1, -1]
    assert other.tolist() == [1, 1]


def test_a_group_without_parameters() -> None:
    """As where all weights of a network are in the group without weight decay."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = LearnedOptimizer([{"params": []}, {"params": [weight]}], Momentum(Gradient(1.0), 1))
    for expected in (0.0, -2.0):
        weight.grad = torch.ones(1)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert weight.item() == expected


def test_frozen_parameters_stay() -> None:
    """Of an update that moves every coordinate, also one with a gradient of zero."""
    network, batches = regression()
    network[0].requires_grad_(False)
    before = [p.detach().clone() for p in network.parameters()]
    update = CoordinateRNN(0.1).double()
    nn.init.normal_(update.last.weight)
    train(network, LearnedOptimizer(network.parameters(), update), batches)
    moved = [not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize(
    "update", [CoordinateRNN(0.1), MLP(2)], ids=lambda update: type(update).__name__
)
def test_an_update_of_another_type(update: Update) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    message = r"float32 and y is of type torch\.float64: .*call its \.to\(torch\.float64\)"
    with pytest.raises(BilevelError, match=message):
        LearnedOptimizer([weight], update).step()


def embedding_step(update: Update, *, sparse: bool) -> torch.Tensor:
    """The weights of an embedding, which met an index twice, after two steps."""
    network = nn.Embedding.from_pretrained(torch.ones(4, 2), freeze=False, sparse=sparse)
    optimizer = LearnedOptimizer(network.parameters(), update)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.tensor([1, 1, 2])).square().sum().backward()
        optimizer.step()
    return network.weight.detach()


@pytest.mark.parametrize(
    "update",
    [CoordinateRNN(0.1), CoordinateMLP(), Optimizer(torch.optim.Adam, lr=0.1)],
    ids=lambda update: type(update).__name__,
)
def test_a_sparse_gradient(update: Update) -> None:
    with pytest.raises(BilevelError, match=r"cannot compute with a sparse tensor.*sparse=False"):
        embedding_step(update, sparse=True)


@pytest.mark.parametrize(
    "update",
    [
        Gradient(0.1),
        SignGradient(0.1),
        pytest.param(
            Momentum(NormalizedGradient(0.1), 0.9),
            marks=pytest.mark.skipif(
                TorchVersion(torch.__version__) < "2.14", reason="older torch has no sparse norm"
            ),
        ),
    ],
    ids=lambda update: type(update).__name__,
)
def test_a_sparse_gradient_where_torch_can_compute_with_it(update: Update) -> None:
    dense = embedding_step(update, sparse=False)
    torch.testing.assert_close(embedding_step(update, sparse=True), dense)


def test_it_is_the_optimizer_of_a_player() -> None:
    network, batches = regression()
    twin, fit = copy.deepcopy(network), Fit(network)

    class Loss(ZeroSum):
        def loss(self, y, batch):
            return F.mse_loss(self.model(batch[0]), batch[1])

    leader = Loss(network, fit)
    optimizer = LearnedOptimizer(leader.parameters(), Gradient(0.1))
    game = Bilevel(leader, fit, pgm(0.1, 0), leader_opt=optimizer, adjoint=Detached())
    game.step(batches[0])
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), batches[:1])
    torch.testing.assert_close(flat(network), flat(twin))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (torch.optim.SGD, "update is the class SGD: it takes an object of type Update"),
        (CNN(1, 0.1, width=4), r"y is a dict: CNN\(channels=1\) moves images"),
    ],
    ids=["class", "images"],
)
def test_an_update_it_cannot_use(update: Update, message: str) -> None:
    parameter = nn.Parameter(torch.ones(1, 1, 2, 2))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(BilevelError, match=message):
        LearnedOptimizer([parameter], update).step()
