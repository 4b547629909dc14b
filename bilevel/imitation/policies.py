"""Stochastic policies π(a | s)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from bilevel.errors import BilevelError
from bilevel.imitation.networks import Array, Standardize, in_numpy, mlp, runs

Actor = Callable[[Array], Array]
"""A map of states ``(B, n)`` to sampled actions."""


class Policy(nn.Module):
    """A distribution over actions for each state; a subclass defines :meth:`forward`."""

    def forward(self, observations: Tensor) -> Distribution:
        """π(· | s), which depends on nothing but s and the weights.

        Args:
            observations: ``(B, n)``, of one step or of all steps of a rollout.

        Returns:
            The distribution over actions, of batch shape ``(B,)``.

        Raises:
            NotImplementedError: If the subclass does not define it.
        """
        raise NotImplementedError

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Samples an action in each state, without autograd.

        Args:
            observations: ``(B, n)``.

        Returns:
            The actions, ``(B,)`` int64 or ``(B, m)``.

        Example:
            >>> GaussianPolicy(3, 2).act(torch.zeros(5, 3)).shape
            torch.Size([5, 2])
        """
        return self(observations).sample()

    def actor(self) -> Actor:
        """A snapshot of the policy that samples actions in numpy, for one rollout.

        A step of a vector environment takes 100 µs, and so does :meth:`act`; a subclass whose
        network numpy can evaluate (:func:`in_numpy`) takes a fifth of that.

        Returns:
            A map of states to actions, in numpy; seeded from torch's generator.
        """
        # Of a copy, since the rollout records what the environments have shown.
        return lambda observations: self.act(torch.from_numpy(observations.copy())).numpy()


class CategoricalPolicy(Policy):
    """A policy over discrete actions: a network computes their logits.

    It is initialised close to uniform, so that the first rollouts try every action.

    Args:
        observations: n, the dimension of an observation.
        actions: Number of actions.
        hidden: Units of the hidden layers.
        inputs: Applied to the observations first.

    Raises:
        BilevelError: If a size is not a positive integer.

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
        """The distribution over action indices."""
        return Categorical(logits=self.network(observations), validate_args=False)

    def actor(self) -> Actor:
        """Samples by the Gumbel-max trick: argmax of the logits plus Gumbel noise."""
        network = _in_numpy(self, CategoricalPolicy)
        if network is None:
            return super().actor()
        generator = _generator()

        def act(observations: Array) -> Array:
            logits = network(observations)
            return (logits + generator.gumbel(size=logits.shape)).argmax(-1)

        return act


class GaussianPolicy(Policy):
    r"""A policy over continuous actions: :math:`a \sim N(\mu(s), \operatorname{diag}(\sigma^2))`.

    The network computes μ; log σ is a state-independent parameter, initially 0 (Schulman et al.,
    2015, Appendix D).

    Args:
        observations: n, the dimension of an observation.
        actions: m, the dimension of an action.
        hidden: Units of the hidden layers.
        inputs: Applied to the observations first.

    Raises:
        BilevelError: If a size is not a positive integer.

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
        """The distribution over action vectors."""
        normal = Normal(self.network(observations), self.log_std.exp(), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def actor(self) -> Actor:
        """Samples μ plus Gaussian noise."""
        network = _in_numpy(self, GaussianPolicy)
        if network is None:
            return super().actor()
        generator = _generator()
        std = self.log_std.detach().exp().numpy()

        def act(observations: Array) -> Array:
            mean = network(observations)
            return mean + std * generator.standard_normal(mean.shape, dtype=np.float32)

        return act


def check_untouched(observations: Tensor, read: Tensor) -> None:
    """Checks that a policy has not written into what it was given to read.

    Args:
        observations: What the environments have shown.
        read: The copy that the policy was given, after it has read it.

    Raises:
        BilevelError: If they differ.
    """
    if not torch.allclose(observations, read, rtol=0, atol=0, equal_nan=True):
        raise BilevelError(
            "the policy changes its observations in place (x -= mean, clamp_): the second time "
            "that it reads a state it would see another one; let it compute new ones, x - mean"
        )


def _in_numpy(policy: CategoricalPolicy | GaussianPolicy, kind: type[Policy]) -> Actor | None:
    """The network, if numpy has its layers and the policy samples as those of its kind do."""
    act = type(policy).act is Policy.act and "act" not in vars(policy)
    try:
        return in_numpy(policy.network) if act and runs(policy, kind.forward) else None
    except BilevelError:
        return None


def _generator() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, ())))
