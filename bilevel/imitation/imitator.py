"""The leader of imitation learning: a policy that earns what the discriminator gives."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.imitation.advantages import generalized_advantages
from bilevel.imitation.discriminator import Discriminator, Imitation, Weights
from bilevel.imitation.policies import Policy, Value
from bilevel.problem import LeaderProblem


class Imitator(LeaderProblem):
    r"""A policy that the discriminator shall take for the expert (Ho & Ermon, 2016).

    .. math::
        L(\theta, y) = -\mathrm{E}\Bigl[\frac{\pi_\theta(a \mid s)}{\pi_{old}(a \mid s)}
        \hat A_y(s, a)\Bigr]

    with the advantages, normalised over the batch, of the rewards that D_y gives. Its gradient at
    the policy that played is the policy gradient; :class:`~bilevel.imitation.TRPO` moves along it.

    Args:
        policy: Who plays.
        value: What a state is worth to it.
        follower: The discriminator.
        discount: γ.
        decay: λ.
    """

    def __init__(
        self,
        policy: Policy,
        value: Value,
        follower: Discriminator,
        *,
        discount: float = 0.99,
        decay: float = 0.98,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.value = value
        self.follower = follower
        self.discount = discount
        self.decay = decay

    def loss(self, y: Weights, batch: Imitation) -> Tensor:
        """The surrogate loss; one evaluation of the policy."""
        rollout = batch.rollout
        advantages, _ = self.judge(y, batch)
        normal = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        chosen = self.policy(rollout.observations.flatten(0, 1))
        log_probs = chosen.log_prob(rollout.actions.flatten(0, 1))
        ratio = (log_probs - rollout.log_probs.flatten()).exp()
        surrogate: Tensor = -(ratio * normal.flatten()).mean()
        return surrogate

    @torch.no_grad()
    def judge(self, y: Weights, batch: Imitation) -> tuple[Tensor, Tensor]:
        """How much better each action was than the average, and what each state was worth.

        Args:
            y: The discriminator's weights.
            batch: What the policy did.

        Returns:
            Advantages and returns, ``(T, N)`` both; the value is fitted to the returns.
        """
        rollout = batch.rollout
        values, next_values = (
            self.value(states) for states in (rollout.observations, rollout.next_observations)
        )
        advantages = generalized_advantages(
            self.follower.reward(y, rollout),
            values,
            next_values,
            rollout.terminated,
            rollout.ended,
            discount=self.discount,
            decay=self.decay,
        )
        return advantages, advantages + values
