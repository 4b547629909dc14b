"""The leader of imitation learning: a policy that earns what the discriminator gives."""

from __future__ import annotations

from torch import Tensor

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
    """
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
        decay: λ.

    Attributes:
        met: The discriminator's weights at the last loss, as constants; empty before.
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
        self.met: Weights = {}

    def loss(self, y: Weights, batch: Imitation) -> Tensor:
        """The surrogate loss; one evaluation of the policy."""
        self.met = {name: leaf.detach().clone() for name, leaf in y.items()}
        advantages, _ = self.judge(y, batch)
        return surrogate(self.policy, batch.rollout, advantages)

    def judge(self, y: Weights, batch: Imitation) -> tuple[Tensor, Tensor]:
        """How much better each action was than the average, and what each state was worth.

        Args:
            y: The discriminator's weights.
            batch: What the policy did.

        Returns:
            Advantages and returns, see :meth:`Value.judge`.
        """
        rewards = self.follower.reward(y, batch.rollout)
        return self.value.judge(batch.rollout, rewards, discount=self.discount, decay=self.decay)
