"""The leader of imitation learning: a policy that earns what the discriminator gives."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.discriminator import Discriminator, Imitation, Weights
from bilevel.imitation.policies import Policy
from bilevel.imitation.rollouts import Rollout
from bilevel.imitation.values import Value
from bilevel.problem import LeaderProblem


def surrogate(policy: Policy, rollout: Rollout, advantages: Tensor) -> Tensor:
    r"""What TRPO lowers (Schulman et al., 2015, eq. 14), by one evaluation of the policy.

    .. math::
        -\mathrm{E}\Bigl[\frac{\pi_\theta(a \mid s)}{\pi_{old}(a \mid s)} \hat A(s, a)\Bigr]

    Its gradient at the policy that played is the policy gradient.

    Args:
        policy: π_θ.
        rollout: What π_old did.
        advantages: How much better each action was than the average, ``(T, N)``; they are
            normalised over the rollout.

    Returns:
        A scalar.

    Raises:
        BilevelError: If there is one advantage alone, or none.
    """
    if advantages.numel() < 2:
        raise BilevelError(
            f"the rollout has {advantages.numel()} actions: their advantages have no spread to be "
            "normalised by; play more steps or environments"
        )
    weights = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    chosen = policy(rollout.observations.flatten(0, 1))
    log_probs = chosen.log_prob(rollout.actions.flatten(0, 1))
    ratio = (log_probs - rollout.log_probs.flatten()).exp()
    loss: Tensor = -(ratio * weights.flatten()).mean()
    return loss


class Imitator(LeaderProblem):
    r"""A policy that the discriminator shall take for the expert (Ho & Ermon, 2016).

    Its loss is the :func:`surrogate` with the advantages of the rewards that D_y gives;
    :class:`~bilevel.imitation.TRPO` lowers it.

    Args:
        policy: Who plays.
        value: What a state is worth to it.
        follower: The discriminator.
        discount: γ.
        gae_lambda: λ, see :func:`generalized_advantages`.

    Attributes:
        met: The discriminator's weights at the last loss, as constants; empty before.
        returns: What the states were worth then, ``(T, N)``: the value's targets.
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
        self.policy = policy
        self.value = value
        self.follower = follower
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.met: Weights = {}
        self.returns = self._advantages = torch.empty(0, 0)
        self._batch: Imitation | None = None  # what met, returns and advantages are of

    def loss(self, y: Weights, batch: Imitation) -> Tensor:
        """The surrogate loss; one evaluation of the policy."""
        # A line search asks again and again at one y and batch: the advantages are kept.
        if batch is not self._batch or not all(
            torch.equal(y[k], met) for k, met in self.met.items()
        ):
            self.met = {name: leaf.detach().clone() for name, leaf in y.items()}
            self._advantages, self.returns = self.advantages_and_returns(self.met, batch)
            self._batch = batch
        return surrogate(self.policy, batch.rollout, self._advantages)

    def forget(self) -> None:
        """Has the next loss estimate its advantages anew: call it when the value has changed."""
        self._batch = None

    def advantages_and_returns(self, y: Weights, batch: Imitation) -> tuple[Tensor, Tensor]:
        """How much better each action was than the average, and what each state was worth.

        Args:
            y: The discriminator's weights.
            batch: What the policy did.

        Returns:
            Advantages and returns, see :meth:`Value.advantages_and_returns`.
        """
        rewards = self.follower.reward(y, batch.rollout)
        return self.value.advantages_and_returns(
            batch.rollout, rewards, discount=self.discount, gae_lambda=self.gae_lambda
        )
