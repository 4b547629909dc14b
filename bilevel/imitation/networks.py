"""Multilayer perceptrons in torch, and their evaluation in numpy for fast rollouts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError

Array = np.ndarray[Any, Any]


class Standardize(nn.Module):
    """``(x − mean) / std`` per feature; mean and std are buffers.

    For imitation, give the states of the expert and those of an untrained policy. An expert that
    hardly moves has small deviations: in their scale, all that a policy sees before it has learned
    is far away, where tanh is flat.

    Args:
        samples: ``(S, n)``, to take mean and standard deviation of; constant features are only
            centred.
        others: Further samples ``(S', n)``; each set counts alike, whatever its size.

    Example:
        >>> Standardize(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))(torch.tensor([[3.0, 6.0]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, samples: Tensor, *others: Tensor) -> None:
        super().__init__()
        sets = samples, *others
        mean = torch.stack([one.mean(0) for one in sets]).mean(0)
        variance = torch.stack([(one - mean).square().mean(0) for one in sets]).mean(0)
        everything = torch.cat(sets)
        varies = everything.amax(0) > everything.amin(0)  # else the deviation is rounding, not zero
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(varies, variance.sqrt(), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Standardizes ``(..., n)``."""
        return (x - self.mean) / self.std


def mlp(
    sizes: Sequence[int], *, last_gain: float = 1.0, inputs: nn.Module | None = None
) -> nn.Sequential:
    """A multilayer perceptron with tanh between the layers.

    Weights are initialised orthogonally with gain √2, biases to zero, as is best for policy
    gradient methods (Engstrom et al., 2020, "Implementation Matters in Deep RL", Sec. 3).

    Args:
        sizes: Units of the input, the hidden layers and the output.
        last_gain: The gain of the last layer; a small one gives outputs near zero.
        inputs: Applied to the input first, such as :class:`Standardize`.

    Returns:
        The network, ``(..., sizes[0])`` to ``(..., sizes[-1])``.

    Raises:
        BilevelError: If there are fewer than two sizes, or one is not a positive integer.

    Example:
        >>> mlp([4, 32, 2])(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    if len(sizes) < 2 or not all(hasattr(size, "__index__") and size >= 1 for size in sizes):
        raise BilevelError(
            f"the network's sizes are {tuple(sizes)}: the input, the output and each layer between "
            "them have a whole number of units; give 1 or more for each, such as (4, 32, 2)"
        )
    layers: list[nn.Module] = [] if inputs is None else [inputs]
    for before, after in itertools.pairwise(sizes):
        linear = nn.Linear(before, after)
        nn.init.orthogonal_(linear.weight, 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    with torch.no_grad():
        linear.weight.mul_(last_gain / 2**0.5)
    return nn.Sequential(*layers[:-1])


def in_numpy(network: nn.Sequential) -> Callable[[Array], Array]:
    """A snapshot of a perceptron in numpy: for a few rows 3 to 5 times as fast as in torch.

    Args:
        network: As made by :func:`mlp`.

    Returns:
        The map of ``(B, n)`` to ``(B, outputs)``.

    Raises:
        BilevelError: If it has other layers than :func:`mlp` makes, or hooks.

    Example:
        >>> network, x = mlp([4, 32, 2]), torch.randn(5, 4)
        >>> bool(np.allclose(in_numpy(network)(x.numpy()), network(x).detach(), atol=1e-6))
        True
    """
    layers = [*network] if runs(network, nn.Sequential.forward) else []
    maps = [make(one) for one in layers for kind, make in _IN_NUMPY.items() if runs(one, kind)]
    if not maps or len(maps) < len(layers):
        names = ", ".join(type(layer).__name__ for layer in network.children())
        raise BilevelError(
            f"the network has the layers {names or 'none'}: in_numpy supports Linear, Tanh and "
            "Standardize in an nn.Sequential, without hooks; evaluate other networks in torch"
        )

    def forward(x: Array) -> Array:
        for layer in maps:
            x = layer(x)
        return x

    return forward


def runs(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether a call of a module runs the ``forward`` of that class and nothing else.

    Args:
        module: The module.
        forward: The function, such as ``nn.Linear.forward``.

    Returns:
        False if it has hooks, as of ``torch.nn.utils.spectral_norm``, or another ``forward``.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).forward is forward and not hooked and "forward" not in vars(module)


def _linear(layer: nn.Linear) -> Callable[[Array], Array]:
    # Copies: a snapshot of the weights, row-major for the product.
    weight = layer.weight.detach().numpy().T.copy()
    bias = 0 if layer.bias is None else layer.bias.detach().numpy().copy()
    return lambda x: x @ weight + bias


def _standardize(layer: Standardize) -> Callable[[Array], Array]:
    mean, std = layer.mean.numpy().copy(), layer.std.numpy().copy()
    return lambda x: (x - mean) / std


_IN_NUMPY: dict[Any, Callable[[Any], Callable[[Array], Array]]] = {
    nn.Linear.forward: _linear,
    nn.Tanh.forward: lambda layer: np.tanh,
    Standardize.forward: _standardize,
}
