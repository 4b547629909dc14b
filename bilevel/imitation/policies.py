"""Stochastic policies π(a | s)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from bilevel.imitation.networks import Array, Standardize, in_numpy, mlp

Player = Callable[[Array], Array]
"""States ``(B, n)`` to actions, drawn."""


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

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Draws an action in each state; nothing is recorded for autograd.

        Args:
            observations: ``(B, n)``.

        Returns:
            The actions, ``(B,)`` int64 or ``(B, m)``.

        Example:
            >>> GaussianPolicy(3, 2).act(torch.zeros(5, 3)).shape
            torch.Size([5, 2])
        """
        actions: Tensor = self(observations).sample()
        return actions

    def player(self) -> Player:
        """Draws actions for one rollout, from the policy as it is now.

        Written apart because a step of a vector environment takes 100 µs, as :meth:`act` does; a
        subclass whose network numpy can evaluate makes that a fifth.

        Returns:
            A map of states to actions, in numpy; its randomness follows torch's seed.
        """
        return lambda observations: self.act(torch.from_numpy(observations)).numpy()


class CategoricalPolicy(Policy):
    """One of a few actions: the network gives their logits.

    It starts close to uniform, so that the first rollouts try every action.

    Args:
        observations: n, the numbers of an observation.
        actions: How many actions there are.
        hidden: Units of the hidden layers.
        inputs: What the observations go through first.

    Raises:
        BilevelError: If a size is not a whole number from 1 on.

    Example:
        >>> CategoricalPolicy(4, 2)(torch.zeros(1, 4)).probs.detach()
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: Sequence[int] = (32, 32),
        *,
        inputs: Standardize | None = None,
    ) -> None:
        super().__init__()
        self.network = mlp([observations, *hidden, actions], last_gain=0.01, inputs=inputs)

    def forward(self, observations: Tensor) -> Categorical:
        """The distribution of the action's index."""
        return Categorical(logits=self.network(observations), validate_args=False)

    def player(self) -> Player:
        """By the Gumbel-max trick: argmax of the logits with Gumbel noise."""
        network, generator = in_numpy(self.network), _generator()

        def draw(observations: Array) -> Array:
            logits = network(observations)
            action: Array = (logits + generator.gumbel(size=logits.shape)).argmax(-1)
            return action

        return draw


class GaussianPolicy(Policy):
    r"""A vector of numbers: :math:`a \sim N(\mu(s), \operatorname{diag}(\sigma^2))`.

    The network gives μ; log σ is a parameter of its own, the same in every state and 0 at the
    start (Schulman et al., 2015, Appendix D).

    Args:
        observations: n, the numbers of an observation.
        actions: The numbers of an action.
        hidden: Units of the hidden layers.
        inputs: What the observations go through first.

    Raises:
        BilevelError: If a size is not a whole number from 1 on.

    Example:
        >>> policy = GaussianPolicy(3, 2)(torch.zeros(1, 3))
        >>> policy.mean.detach(), policy.stddev.detach()
        (tensor([[0., 0.]]), tensor([[1., 1.]]))
    """

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: Sequence[int] = (64, 64),
        *,
        inputs: Standardize | None = None,
    ) -> None:
        super().__init__()
        self.network = mlp([observations, *hidden, actions], last_gain=0.01, inputs=inputs)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, observations: Tensor) -> Independent[Normal]:
        """The distribution of the action, a vector."""
        normal = Normal(self.network(observations), self.log_std.exp(), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def player(self) -> Player:
        """μ with normal noise."""
        network, generator = in_numpy(self.network), _generator()
        spread = self.log_std.detach().exp().numpy()

        def draw(observations: Array) -> Array:
            mean = network(observations)
            return mean + spread * generator.standard_normal(mean.shape, dtype=np.float32)

        return draw


def _generator() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, ())))
