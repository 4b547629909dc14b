"""Perceptrons in torch and in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bilevel import BilevelError
from bilevel.imitation import Standardize, in_numpy, mlp


def test_layers_are_orthogonal_with_their_gains() -> None:
    network = mlp([8, 6, 2], last_gain=0.01)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Tanh, nn.Linear]
    first, last = network[0].weight, network[2].weight
    torch.testing.assert_close(first @ first.T, 2 * torch.eye(6))
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(2))
    assert not network[0].bias.any()
    assert not network[2].bias.any()


def test_samples_come_out_standardized() -> None:
    samples = torch.randn(100, 3) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([0.0, 7.0, 2.0])
    out = Standardize(samples)(samples)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))


@pytest.mark.parametrize("constant", [0.1, 1e-8, 16777217.0])
def test_a_constant_is_only_centred(constant: float) -> None:
    """Its standard deviation in float32 is the rounding of its mean."""
    standardize = Standardize(torch.full((1000, 1), constant))
    assert standardize.std.item() == 1
    torch.testing.assert_close(standardize(torch.tensor([[0.5]])).item(), 0.5 - constant)


def test_sets_count_alike_whatever_their_size() -> None:
    one, other = torch.randn(5, 3) * 0.1 + 4, torch.randn(40, 3) * 2
    of_both, even = Standardize(one, other), Standardize(torch.cat([one.repeat(8, 1), other]))
    torch.testing.assert_close(of_both.mean, even.mean)
    torch.testing.assert_close(of_both.std, even.std)
    assert Standardize(torch.ones(5, 1), torch.ones(4, 1)).std.item() == 1
    assert Standardize(torch.ones(5, 1), torch.zeros(4, 1)).std.item() == 0.5


def test_numpy_gives_what_torch_gives() -> None:
    network = mlp([3, 16, 8, 2], inputs=Standardize(torch.randn(20, 3) * 4 + 1))
    nn.init.normal_(network[1].bias)
    x = torch.randn(7, 3)
    here = in_numpy(network)
    np.testing.assert_allclose(here(x.numpy()), network(x).detach(), atol=1e-6)
    before = here(x.numpy())
    with torch.no_grad():
        network[1].weight.zero_()
    np.testing.assert_array_equal(here(x.numpy()), before)  # it is the network as it was


class Noisy(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.randn(1)


def hooked(of: int | None, kind: str) -> nn.Sequential:
    network = mlp([3, 8, 2])
    module = network if of is None else network[of]
    getattr(module, f"register_{kind}")(lambda *_: None)
    return network


@pytest.mark.parametrize("of", [None, 0, 1])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_numpy_knows_no_hooks(of: int | None, kind: str) -> None:
    with pytest.raises(BilevelError, match="without hooks; evaluate other networks in torch"):
        in_numpy(hooked(of, kind))


def test_a_spectral_norm_is_evaluated_in_torch_or_as_a_parametrization() -> None:
    network, x = mlp([3, 8, 2]), torch.randn(5, 3)
    nn.utils.parametrizations.spectral_norm(network[0])
    network.eval()
    np.testing.assert_allclose(in_numpy(network)(x.numpy()), network(x).detach(), atol=1e-6)
    nn.utils.spectral_norm(network[2])
    with pytest.raises(BilevelError, match="without hooks"):
        in_numpy(network)


@pytest.mark.parametrize("layer", [nn.ReLU(), Noisy(1, 1)], ids=["relu", "noisy"])
def test_layers_that_numpy_does_not_evaluate(layer: nn.Module) -> None:
    with pytest.raises(BilevelError, match=f"the layers Linear, {type(layer).__name__}: in_numpy"):
        in_numpy(nn.Sequential(nn.Linear(1, 1), layer))


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 5 * x + super().forward(x)


def test_numpy_does_not_evaluate_a_sequence_with_a_forward_of_its_own() -> None:
    with pytest.raises(BilevelError, match="evaluate other networks in torch"):
        in_numpy(Residual(nn.Linear(2, 2), nn.Tanh()))


def test_numpy_evaluates_layers_without_bias_and_repeated_ones() -> None:
    tanh, x = nn.Tanh(), torch.randn(5, 3)
    network = nn.Sequential(nn.Linear(3, 4, bias=False), tanh, nn.Linear(4, 4), tanh)
    np.testing.assert_allclose(in_numpy(network)(x.numpy()), network(x).detach(), atol=1e-6)


def test_numpy_has_a_copy_of_what_it_evaluates() -> None:
    layer = Standardize(torch.tensor([[0.0], [2.0]]))
    evaluate, x = in_numpy(nn.Sequential(layer)), np.ones((1, 1), np.float32)
    before = evaluate(x)
    layer.mean.fill_(5.0)
    assert np.array_equal(evaluate(x), before)
