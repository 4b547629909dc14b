"""Stochastic policies π(a | s), and the value of a state: small perceptrons with tanh."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from bilevel.errors import BilevelError


def mlp(sizes: Sequence[int], *, last_gain: float = 1.0) -> nn.Sequential:
    """A perceptron with tanh between its layers and nothing after the last.

    Weights are orthogonal with gain √2, biases zero, as policy gradient methods start best
    (Engstrom et al., 2020, "Implementation Matters in Deep RL", Sec. 3).

    Args:
        sizes: Units of the input, the hidden layers and the output.
        last_gain: The gain of the last layer; a small one gives outputs near zero.

    Returns:
        The network, ``(..., sizes[0])`` to ``(..., sizes[-1])``.

    Raises:
        BilevelError: If there are fewer than two sizes, or one is not a whole number from 1 on.

    Example:
        >>> mlp([4, 32, 2])(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    if len(sizes) < 2 or not all(hasattr(size, "__index__") and size >= 1 for size in sizes):
        raise BilevelError(
            f"the network's sizes are {tuple(sizes)}: the input, the output and each layer between "
            "them have a whole number of units; give 1 or more for each, such as (4, 32, 2)"
        )
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(linear.weight, 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    with torch.no_grad():
        linear.weight.mul_(last_gain / 2**0.5)
    return nn.Sequential(*layers[:-1])


class Policy(nn.Module):
    """A distribution of actions for each state; a subclass writes :meth:`forward`."""

    def forward(self, observations: Tensor) -> Distribution:
        """π(· | s).

        Args:
            observations: ``(B, n)``.

        Returns:
            The distribution of the actions, of batch shape ``(B,)``.

        Raises:
            NotImplementedError: If the subclass has not written it.
        """
        raise NotImplementedError

    def act(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Draws an action in each state; nothing is recorded for autograd.

        Args:
            observations: ``(B, n)``.

        Returns:
            The actions, ``(B,)`` int64 or ``(B, actions)``, and their log π(a | s), ``(B,)``.

        Example:
            >>> actions, log_probs = GaussianPolicy(3, 2).act(torch.zeros(5, 3))
            >>> actions.shape, log_probs.shape, log_probs.requires_grad
            (torch.Size([5, 2]), torch.Size([5]), False)
        """
        with torch.no_grad():
            distribution = self(observations)
            actions = distribution.sample()
            return actions, distribution.log_prob(actions)


class CategoricalPolicy(Policy):
    """One of a few actions: the network gives their logits.

    It starts close to uniform, so that the first rollouts try every action.

    Args:
        observations: n, the numbers of an observation.
        actions: How many actions there are.
        hidden: Units of the hidden layers.

    Raises:
        BilevelError: If a size is not a whole number from 1 on.

    Example:
        >>> CategoricalPolicy(4, 2)(torch.zeros(1, 4)).probs.detach()
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, observations: int, actions: int, hidden: Sequence[int] = (32, 32)) -> None:
        super().__init__()
        self.network = mlp([observations, *hidden, actions], last_gain=0.01)

    def forward(self, observations: Tensor) -> Categorical:
        """The distribution of the action's index."""
        return Categorical(logits=self.network(observations), validate_args=False)


class GaussianPolicy(Policy):
    r"""A vector of numbers: :math:`a \sim N(\mu(s), \operatorname{diag}(\sigma^2))`.

    The network gives μ; log σ is a parameter of its own, the same in every state and 0 at the
    start (Schulman et al., 2015, Appendix D).

    Args:
        observations: n, the numbers of an observation.
        actions: The numbers of an action.
        hidden: Units of the hidden layers.

    Raises:
        BilevelError: If a size is not a whole number from 1 on.

    Example:
        >>> policy = GaussianPolicy(3, 2)(torch.zeros(1, 3))
        >>> policy.mean.detach(), policy.stddev.detach()
        (tensor([[0., 0.]]), tensor([[1., 1.]]))
    """

    def __init__(self, observations: int, actions: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.network = mlp([observations, *hidden, actions], last_gain=0.01)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, observations: Tensor) -> Independent[Normal]:
        """The distribution of the action, a vector."""
        normal = Normal(self.network(observations), self.log_std.exp(), validate_args=False)
        return Independent(normal, 1, validate_args=False)


class Value(nn.Module):
    """V(s): what a state is worth, one number.

    Args:
        observations: n, the numbers of an observation.
        hidden: Units of the hidden layers.

    Raises:
        BilevelError: If a size is not a whole number from 1 on.

    Example:
        >>> Value(4)(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    def __init__(self, observations: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.network = mlp([observations, *hidden, 1])

    def forward(self, observations: Tensor) -> Tensor:
        """The value of each state.

        Args:
            observations: ``(B, n)``.

        Returns:
            ``(B,)``, in units of the return.
        """
        values: Tensor = self.network(observations)
        return values.squeeze(-1)
