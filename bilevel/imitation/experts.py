"""Experts: a scripted one, and TRPO on the environment's own rewards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor
from torch.distributions import Categorical

from bilevel.imitation.environments import Task, make_envs
from bilevel.imitation.imitator import surrogate
from bilevel.imitation.policies import Policy
from bilevel.imitation.rollouts import Rollout, Sampler
from bilevel.imitation.trpo import TRPO
from bilevel.imitation.values import Value


class MountainCarExpert(Policy):
    """Pushes in the direction of the velocity: a return of about −120 on ``MountainCar-v0``.

    Example:
        >>> MountainCarExpert().act(torch.tensor([[-0.5, -0.01], [-0.5, 0.02]]))
        tensor([0, 2])
    """

    def forward(self, observations: Tensor) -> Categorical:
        """Left (0) or right (2), with probability 1."""
        right = observations[..., 1] >= 0
        still = torch.zeros_like(observations[..., 0])
        return Categorical(torch.stack([~right, still, right], -1), validate_args=False)


def train_expert(
    env: str,
    iterations: int,
    *,
    steps: int = 5000,
    environments: int = 16,
    discount: float = 0.99,
    gae_lambda: float = 0.98,
    seed: int = 0,
    callback: Callable[[int, Tensor], None] = lambda iteration, returns: None,
) -> Policy:
    """Trains a policy by TRPO on the environment's own rewards (Schulman et al., 2015).

    Args:
        env: The environment's name.
        iterations: TRPO updates.
        steps: Environment steps per iteration, over all environments.
        environments: Number of environments.
        discount: γ.
        gae_lambda: λ of the advantages.
        seed: Seed of everything; runs with different seeds share no environment seed.
        callback: Called after each iteration with its index and the returns of the episodes that
            ended in it.

    Returns:
        The policy.

    Raises:
        BilevelError: If there is no such environment.
    """
    torch.manual_seed(seed)
    with closing(make_envs(env, environments)) as envs:
        task = Task.of(envs)
        policy, value = task.policy(), Value(task.observations)
        optimizer = TRPO(policy)
        value_opt = torch.optim.Adam(value.parameters(), lr=1e-3, fused=True)
        # N environments use the seeds s, …, s + N − 1.
        sampler = Sampler(envs, policy, seed=seed * environments)
        for iteration in range(iterations):
            rollout = sampler.collect(-(-steps // environments))
            advantages, returns = value.advantages_and_returns(
                rollout, rollout.rewards, discount=discount, gae_lambda=gae_lambda
            )
            trpo_step(policy, optimizer, rollout, advantages)
            value.fit(value_opt, rollout.observations.flatten(0, 1), returns.flatten())
            callback(iteration, rollout.returns)
    return policy


def trpo_step(policy: Policy, optimizer: TRPO, rollout: Rollout, advantages: Tensor) -> None:
    """One TRPO update of a policy on a rollout.

    Args:
        policy: The policy that collected the rollout.
        optimizer: Of the policy.
        rollout: The rollout.
        advantages: Of its actions, ``(T, N)``.
    """

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = surrogate(policy, rollout, advantages)
        loss.backward()
        return loss

    optimizer.step(closure)
