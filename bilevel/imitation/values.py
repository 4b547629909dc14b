"""The state-value function, with targets of any scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.imitation.advantages import generalized_advantages
from bilevel.imitation.networks import Standardize, mlp
from bilevel.imitation.rollouts import Rollout


class Value(nn.Module):
    """The state-value function V(s), with its output scaled to the magnitude of the returns.

    The network's output is multiplied by the root mean square of the returns that it is fitted to;
    whenever that changes, the last layer is rescaled so that V does not (after van Hasselt et al.,
    "Learning values across many orders of magnitude", NeurIPS 2016). So returns of −1,500 are
    learned as fast as those of 1. The mean is *not* subtracted: an unseen state has a value of
    about 0, which is optimistic where rewards are negative, and without this optimism MountainCar
    is seldom solved from its own rewards.

    Args:
        observations: n, the dimension of an observation.
        hidden: Units of the hidden layers.
        inputs: Applied to the observations first.

    Raises:
        BilevelError: If a size is not a positive integer.

    Example:
        >>> Value(4)(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    scale: Tensor

    def __init__(
        self,
        observations: int,
        hidden: Sequence[int] = (64, 64),
        *,
        inputs: Standardize | None = None,
    ) -> None:
        super().__init__()
        self.network = mlp([observations, *hidden, 1], last_gain=0.01, inputs=inputs)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, observations: Tensor) -> Tensor:
        """The value of each state.

        Args:
            observations: ``(..., n)``.

        Returns:
            ``(...)``, in units of the return.
        """
        values: Tensor = self.network(observations)
        return self.scale * values.squeeze(-1)

    @torch.no_grad()
    def advantages_and_returns(
        self, rollout: Rollout, rewards: Tensor, *, discount: float, gae_lambda: float
    ) -> tuple[Tensor, Tensor]:
        """Advantages by GAE, and the targets of V: advantages plus values.

        Args:
            rollout: Of the policy.
            rewards: Of its steps, ``(T, N)``.
            discount: γ.
            gae_lambda: λ, see :func:`~bilevel.imitation.generalized_advantages`.

        Returns:
            Advantages and targets (λ-returns), ``(T, N)`` both.
        """
        values = self(rollout.observations)
        advantages = generalized_advantages(
            rewards,
            values,
            self(rollout.next_observations),
            rollout.terminated,
            rollout.ended,
            discount=discount,
            gae_lambda=gae_lambda,
        )
        return advantages, advantages + values

    def fit(
        self,
        optimizer: torch.optim.Optimizer,
        observations: Tensor,
        returns: Tensor,
        *,
        epochs: int = 3,
        batch_size: int = 256,
    ) -> Tensor:
        """Fits V to returns by least squares over random minibatches.

        Args:
            optimizer: Of this module's parameters.
            observations: ``(B, n)``.
            returns: ``(B,)``.
            epochs: Passes over the states.
            batch_size: States per step.

        Returns:
            The explained variance 1 − Var(returns − V) / Var(returns) before the fit.
        """
        with torch.no_grad():
            explained_variance: Tensor = 1 - (returns - self(observations)).var() / returns.var()
        self._rescale(returns)
        targets = returns / self.scale
        for _ in range(epochs):
            for rows in torch.randperm(len(targets)).split(batch_size):
                optimizer.zero_grad()
                F.mse_loss(self.network(observations[rows]).squeeze(-1), targets[rows]).backward()
                optimizer.step()
        return explained_variance

    @torch.no_grad()
    def _rescale(self, returns: Tensor) -> None:
        """Sets the scale to that of the returns, and leaves V unchanged."""
        scale = returns.square().mean().sqrt().clamp(min=1e-6)
        for parameter in self.network[-1].parameters():
            parameter.mul_(self.scale / scale)
        self.scale.copy_(scale)
