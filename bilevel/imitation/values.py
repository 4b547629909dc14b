"""What a state is worth to a policy, and how that is learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.imitation.advantages import generalized_advantages
from bilevel.imitation.networks import Standardize, mlp
from bilevel.imitation.rollouts import Rollout


class Value(nn.Module):
    """V(s): what a state is worth, one number, learned in units of the returns' size.

    The network's output is stretched to the size (root mean square) of the returns that it is
    fitted to; its last layer is turned back each time, so that V itself does not jump (after van
    Hasselt et al., "Learning values across many orders of magnitude", NeurIPS 2016). So returns of
    −1,500 are learned as fast as those of 1. Their mean is *not* taken out: a state that was never
    seen is worth about 0, which is optimistic where rewards are negative, and without this optimism
    MountainCar is never solved from its own rewards.

    Args:
        observations: n, the numbers of an observation.
        hidden: Units of the hidden layers.
        inputs: What the observations go through first.

    Raises:
        BilevelError: If a size is not a whole number from 1 on.

    Example:
        >>> Value(4)(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    size: Tensor

    def __init__(
        self,
        observations: int,
        hidden: Sequence[int] = (64, 64),
        *,
        inputs: Standardize | None = None,
    ) -> None:
        super().__init__()
        self.network = mlp([observations, *hidden, 1], last_gain=0.01, inputs=inputs)
        self.register_buffer("size", torch.ones(()))

    def forward(self, observations: Tensor) -> Tensor:
        """The value of each state.

        Args:
            observations: ``(..., n)``.

        Returns:
            ``(...)``, in units of the return.
        """
        values: Tensor = self.network(observations)
        return self.size * values.squeeze(-1)

    @torch.no_grad()
    def advantages_and_returns(
        self, rollout: Rollout, rewards: Tensor, *, discount: float, gae_lambda: float
    ) -> tuple[Tensor, Tensor]:
        """How much better each action was than the average, and what each state was worth.

        Args:
            rollout: What the policy did.
            rewards: What it earned for it, ``(T, N)``.
            discount: γ.
            gae_lambda: λ, see :func:`~bilevel.imitation.generalized_advantages`.

        Returns:
            Advantages and returns, ``(T, N)`` both; the returns are what V is fitted to.
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
        """Moves V towards the returns, by mean squares over random batches.

        Args:
            optimizer: Of this network's parameters.
            observations: ``(B, n)``.
            returns: ``(B,)``.
            epochs: How often each state is looked at.
            batch_size: States a step.

        Returns:
            The explained variance, which is the share of the returns' variance that V explained
            before, at most 1.
        """
        with torch.no_grad():
            explained_variance: Tensor = 1 - (returns - self(observations)).var() / returns.var()
        self._stretch(returns)
        targets = returns / self.size
        for _ in range(epochs):
            for rows in torch.randperm(len(targets)).split(batch_size):
                optimizer.zero_grad()
                F.mse_loss(self.network(observations[rows]).squeeze(-1), targets[rows]).backward()
                optimizer.step()
        return explained_variance

    @torch.no_grad()
    def _stretch(self, returns: Tensor) -> None:
        """Takes the size of the returns, and leaves V as it was."""
        size = returns.square().mean().sqrt().clamp(min=1e-6)
        for parameter in self.network[-1].parameters():
            parameter.mul_(self.size / size)
        self.size.copy_(size)
