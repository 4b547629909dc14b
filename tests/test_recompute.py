"""Layers that keep their input alone compute what they compute, in every mode of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bilevel import FollowerProblem, Implicit, Iterative, LeaderProblem, Unrolled
from bilevel.recompute import checkpointed, kept
from bilevel.updates import CNN, Gradient
from bilevel.updates.cnn import ResBlock


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.PReLU(), nn.Conv2d(3, 3, 3, padding=1)).double()


X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run()  # while it lives, so do they
    del output
    return sum(found.values())


def test_gradients_and_statistics_are_those_of_the_layers() -> None:
    plain, again = layers(), layers()
    for run in (lambda: plain(X), lambda: checkpointed(again, X)):
        run().pow(2).sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, again.get_buffer(name)), name
    assert again[0].num_batches_tracked == 1


def test_the_backward_pass_is_of_the_mode_that_the_layers_were_in() -> None:
    plain, again = layers(), layers()
    outputs = plain(X), checkpointed(again, X)
    for network, output in zip((plain, again), outputs, strict=True):
        network.eval()
        output.pow(2).sum().backward()
    assert torch.equal(plain[2].weight.grad, again[2].weight.grad)
    assert not again[0].training


def test_the_backward_pass_is_of_the_weights_that_were_lent() -> None:
    """By functional_call, which takes them back before the backward pass."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers()

        def forward(self, x: Tensor, recompute: bool) -> Tensor:
            return checkpointed(self.layers, x) if recompute else self.layers(x)

    network, gradients = Network(), []
    for recompute in (False, True):
        lent = {n: (2 * p.detach() + 1).requires_grad_() for n, p in network.named_parameters()}
        output = torch.func.functional_call(network, lent, (X, recompute))
        gradients.append(torch.autograd.grad(output.pow(2).sum(), [*lent.values()]))
    assert all(map(torch.equal, *gradients))


def test_second_derivatives() -> None:
    found = []
    for run in (lambda net, x: net(x), checkpointed):
        x, net = X.clone().requires_grad_(), layers()
        (slope,) = torch.autograd.grad(run(net, x).pow(2).sum(), x, create_graph=True)
        slope.pow(2).sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd])
def test_under_transforms(transform: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    net = layers().eval()
    exact = transform(lambda x: net(x).pow(2).sum())(X)
    assert torch.equal(transform(lambda x: checkpointed(net, x).pow(2).sum())(X), exact)


def test_a_block_of_an_attacker_keeps_a_third() -> None:
    block, x = ResBlock(8, 8), torch.randn(2, 8, 16, 16, requires_grad=True)
    assert saved_bytes(lambda: block(x)) < 0.4 * saved_bytes(lambda: block.residual(x))


def test_an_attacker_is_one_graph_for_a_compiler() -> None:
    attacker = CNN(1, 0.1, width=2)
    compiled = torch.compile(copy.deepcopy(attacker), backend="aot_eager", fullgraph=True)
    x, found = torch.rand(2, 1, 4, 4), []
    for network in (attacker, compiled):
        output, _ = network(torch.zeros_like(x), x - 0.5, x, None)
        network.eval()
        output.sum().backward()
        gradients = [p.grad for p in network.parameters()]
        found.append([output, *gradients, *network.buffers()])
    torch.testing.assert_close(*found)


@pytest.mark.skipif(torch.__version__ < "2.9", reason="compiled layers keep everything")
def test_a_compiler_keeps_as_little() -> None:
    block, x = ResBlock(8, 8), torch.randn(2, 8, 16, 16, requires_grad=True)
    compiled = torch.compile(block, backend="aot_eager")
    assert saved_bytes(lambda: compiled(x)) < 0.6 * saved_bytes(lambda: block.residual(x))


def test_layers_of_several_arguments() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    padded = torch.tensor([[False, False, True], [False, False, False]])
    outputs = []
    for run in (
        lambda *args, **kwargs: layer(*args, **kwargs),
        lambda *a, **k: checkpointed(layer, *a, **k),
    ):
        torch.manual_seed(0)  # of dropout
        layer.zero_grad()
        output = run(x, src_key_padding_mask=padded)
        output.square().sum().backward()
        outputs.append((output, layer.linear1.weight.grad.clone()))
    assert all(map(torch.equal, *outputs))


class Noise(nn.Module):
    """As of NEFTune: in training only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Frugal(nn.Module):
    """Computes its body again in the backward pass, by torch's own function."""

    def __init__(self, *extra: nn.Module, frugal: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), *extra, nn.Tanh(), nn.Linear(8, 2)).double()
        self.frugal = frugal

    def forward(self, x: Tensor) -> Tensor:
        if not self.frugal:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=False, context_fn=kept(self.body))


class Attack(FollowerProblem):
    sense = "max"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: Learner, y: Tensor, batch: Tensor) -> Tensor:
        return leader.model(batch + y).square().sum(1) - 5 * y.square().sum(1)


class Learner(LeaderProblem):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return (y.tanh() * batch).mean()


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=repr)
@pytest.mark.parametrize(
    ("extra", "mode"),
    [(Noise, "eval"), (lambda: nn.BatchNorm1d(8), "train")],
    ids=["noise", "norm"],
)
def test_a_leader_that_computes_its_layers_again(adjoint, extra, mode) -> None:
    """In the mode and with the statistics of the solve, which is over by then."""
    found = []
    for frugal in (False, True):
        torch.manual_seed(0)
        leader = Learner(Frugal(extra(), frugal=frugal))
        batch = torch.randn(6, 3, dtype=torch.float64)
        solver = Iterative(Gradient(0.1), 20, leader_mode=mode)
        answer = adjoint.solve(solver, Attack(), leader, batch).value
        leader.loss(answer, batch).backward()
        found.append([p.grad for p in leader.parameters()])
        assert all(buffer.sum() in (0, 8) for buffer in leader.buffers())  # never moved
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_what_keeps_the_state_is_made_once_for_all_passes() -> None:
    """As for transformers, before the network is put into the mode that it is called in."""
    plain, again = layers(), layers()
    keep = kept(again)
    for network in (plain, again):
        network.eval()
    outputs = plain(X), checkpoint(again, X, use_reentrant=False, context_fn=keep)
    for network, output in zip((plain, again), outputs, strict=True):
        network.train()
        output.pow(2).sum().backward()
    assert torch.equal(plain[2].weight.grad, again[2].weight.grad)
    assert again[0].num_batches_tracked == 0


class Debugged(nn.Linear):
    def forward(self, x: Tensor, *, debug: bool) -> Tensor:
        return super().forward(x) if debug else x


def test_arguments_that_torchs_own_function_has_too() -> None:
    layer, x = Debugged(3, 3).double(), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(checkpointed(layer, x, debug=True), layer(x, debug=True))
