"""The leader of an imitation game: a policy rewarded by the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.discriminator import Discriminator, ImitationBatch, Weights
from bilevel.imitation.policies import Policy
from bilevel.imitation.rollouts import Rollout
from bilevel.imitation.values import Value
from bilevel.problem import LeaderProblem, networks_of
from bilevel.snapshot import Snapshot


def surrogate(policy: Policy, rollout: Rollout, advantages: Tensor) -> Tensor:
    r"""The surrogate loss of TRPO (Schulman et al., 2015, eq. 14); evaluates the policy once.

    .. math::
        -\mathrm{E}\Bigl[\frac{\pi_\theta(a \mid s)}{\pi_{old}(a \mid s)} \hat A(s, a)\Bigr]

    At θ = θ_old its gradient is the negative policy gradient.

    Args:
        policy: π_θ.
        rollout: Collected by π_old.
        advantages: Â, ``(T, N)``; normalised here to mean 0 and standard deviation 1.

    Returns:
        A scalar.

    Raises:
        BilevelError: If there are fewer than two advantages, or more than one probability for an
            action.
    """
    if advantages.numel() < 2:
        raise BilevelError(
            f"the rollout has {advantages.numel()} actions: advantages are normalised by their "
            "standard deviation; play more steps or environments"
        )
    weights = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    distribution = policy(rollout.observations.flatten(0, 1))
    log_probs = distribution.log_prob(rollout.actions.flatten(0, 1))
    if log_probs.shape != weights.flatten().shape:
        raise BilevelError(
            f"the policy gives {tuple(log_probs.shape)} probabilities to {weights.numel()} actions "
            f"by a {type(distribution).__name__}: an action of several numbers has one; return "
            "Independent(Normal(…), 1)"
        )
    ratio = (log_probs - rollout.log_probs.flatten()).exp()
    return -(ratio * weights.flatten()).mean()


class Imitator(LeaderProblem):
    r"""A policy trained to be mistaken for the expert by the discriminator (Ho & Ermon, 2016).

    Its loss is the :func:`surrogate` with advantages estimated from the discriminator's rewards;
    optimise it with :class:`~bilevel.imitation.TRPO`.

    Args:
        policy: The policy.
        value: The value function of the discriminator's rewards.
        follower: The discriminator.
        discount: γ.
        gae_lambda: λ, see :func:`generalized_advantages`.

    Attributes:
        discriminator_weights: y of the last evaluation of the loss, detached; empty before.
        discriminator_state: The follower's networks as they were when they gave the rewards for
            it: their mode, their running statistics, and the random numbers.
        returns: The targets of the value function for it, ``(T, N)``.

    Raises:
        BilevelError: If policy and value function share a parameter that is trained.
    """

    def __init__(
        self,
        policy: Policy,
        value: Value,
        follower: Discriminator,
        *,
        discount: float = 0.99,
        gae_lambda: float = 0.98,
    ) -> None:
        super().__init__()
        _check_apart(policy, value)
        self.policy = policy
        self.value = value
        self.follower = follower
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.discriminator_weights: Weights = {}
        self.discriminator_state = Snapshot()
        self.returns = self._advantages = torch.empty(0, 0)
        # What the advantages were computed from: a batch, and copies of y and of V's tensors.
        self._batch: ImitationBatch | None = None
        self._tensors: list[Tensor] = []

    def loss(self, y: Weights, batch: ImitationBatch) -> Tensor:
        """The surrogate loss; evaluates the policy once."""
        # The line search evaluates the loss repeatedly at the same y, V and batch.
        tensors = [*y.values(), *self.value.parameters(), *self.value.buffers()]
        if batch is not self._batch or not all(map(torch.equal, tensors, self._tensors)):
            self._batch, self._tensors = batch, [tensor.detach().clone() for tensor in tensors]
            self.discriminator_weights = dict(zip(y, self._tensors, strict=False))
            self.discriminator_state = Snapshot(*networks_of(self.follower))
            self._advantages, self.returns = self.advantages_and_returns(
                self.discriminator_weights, batch
            )
        return surrogate(self.policy, batch.rollout, self._advantages)

    def advantages_and_returns(self, y: Weights, batch: ImitationBatch) -> tuple[Tensor, Tensor]:
        """Advantages and value targets under the discriminator's rewards.

        Args:
            y: The discriminator's weights.
            batch: Rollout and expert pairs.

        Returns:
            See :meth:`Value.advantages_and_returns`.
        """
        rewards = self.follower.reward(y, batch.rollout)
        return self.value.advantages_and_returns(
            batch.rollout, rewards, discount=self.discount, gae_lambda=self.gae_lambda
        )


def _check_apart(policy: Policy, value: Value) -> None:
    trained = {id(p): name for name, p in policy.named_parameters() if p.requires_grad}
    shared = [trained[id(p)] for p in value.parameters() if id(p) in trained]
    if shared:
        raise BilevelError(
            f"the policy's {shared[0]} is the value function's too: a step of the policy would "
            "change the advantages that it improves, and a fit of V the policy; give each a "
            "network of its own, or freeze what they share by requires_grad_(False)"
        )
