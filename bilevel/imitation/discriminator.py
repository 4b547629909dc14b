"""The follower of imitation learning: it tells the policy's behaviour from the expert's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bilevel.errors import BilevelError
from bilevel.imitation.policies import mlp
from bilevel.imitation.rollouts import Rollout
from bilevel.problem import FollowerProblem

Weights = dict[str, Tensor]

REWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "survive": lambda logits: -F.logsigmoid(logits),
    "finish": lambda logits: F.logsigmoid(-logits),
}
"""What the policy earns at logits of D, by convention: see :class:`Discriminator`."""


class Imitation(NamedTuple):
    """The batch of an imitation game.

    Attributes:
        rollout: What the policy did.
        expert: Pairs of the expert, ``(E, n + m)``, see :func:`pairs`.
    """

    rollout: Rollout
    expert: Tensor


def pairs(observations: Tensor, actions: Tensor, count: int | None) -> Tensor:
    """States and actions side by side, as a discriminator reads them.

    Args:
        observations: ``(..., n)``.
        actions: ``(...)`` numbers of discrete actions, or ``(..., m)``.
        count: How many discrete actions there are; None if actions are vectors.

    Returns:
        ``(B, n + m)``, discrete actions one-hot.

    Example:
        >>> pairs(torch.zeros(1, 2), torch.tensor([1]), count=2)
        tensor([[0., 0., 0., 1.]])
    """
    told = actions if count is None else F.one_hot(actions, count).to(observations.dtype)
    return torch.cat([observations, told], -1).flatten(0, -2)


class Discriminator(FollowerProblem):
    r"""max over D of E_π log D(s, a) + E_expert log(1 − D(s, a)), eq. 9 of Jiang et al. (2021).

    D is a small tanh network whose weights are y, a dict of tensors that the whole batch shares: 1
    says "the policy". The policy earns, by convention,

    - ``"survive"``: −log D ≥ 0. Each step pays, so episodes grow long: right where the expert's
      are, as in balancing, and wrong where it wants to be done.
    - ``"finish"``: log(1 − D) ≤ 0. Each step costs, so episodes grow short: right where a goal is
      to be reached.

    Ho & Ermon (2016) chose by environment too. A constant D already makes a policy survive, or
    finish: compare with it.

    Args:
        observations: n, the length of a state.
        actions: How many discrete actions there are, or the length m of an action.
        discrete: Whether actions are discrete.
        hidden: Widths of the hidden layers.
        reward: The convention.

    Raises:
        BilevelError: If there is no such convention.

    Example:
        >>> follower = Discriminator(4, 2, discrete=True, reward="survive")
        >>> sorted(follower.init(None))[0], follower.size
        ('0.bias', 2561)
    """

    sense: Literal["min", "max"] = "max"

    def __init__(
        self,
        observations: int,
        actions: int,
        *,
        discrete: bool,
        hidden: Sequence[int] = (64, 32),
        reward: str = "survive",
    ) -> None:
        if reward not in REWARDS:
            raise BilevelError(
                f"there is no reward {reward!r}: its sign decides whether episodes grow long or "
                f"short; choose from {', '.join(REWARDS)}"
            )
        self.count = actions if discrete else None
        self.network: nn.Module = mlp([observations + actions, *hidden, 1])
        self.convention = reward

    @property
    def size(self) -> int:
        """m, how many numbers y has.

        Returns:
            The number of the network's weights.
        """
        return sum(weight.numel() for weight in self.network.parameters())

    def init(self, batch: Imitation | None) -> Weights:
        """The weights as the network was made."""
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}

    def logits(self, y: Weights, behaviour: Tensor) -> Tensor:
        """Log D − log(1 − D).

        Args:
            y: Weights.
            behaviour: Pairs, ``(B, n + m)``.

        Returns:
            ``(B,)``.
        """
        scores: Tensor = functional_call(self.network, y, (behaviour,))
        return scores.squeeze(-1)

    def objective(self, leader: Any, y: Weights, batch: Imitation) -> Tensor:
        """The mean log likelihood of who did what, a scalar."""
        policy = F.logsigmoid(self.logits(y, self.behaviour(batch.rollout))).mean()
        return policy + F.logsigmoid(-self.logits(y, batch.expert)).mean()

    def reward(self, y: Weights, rollout: Rollout) -> Tensor:
        """What the policy earned in place of the environment's rewards.

        Args:
            y: Weights.
            rollout: What the policy did.

        Returns:
            ``(T, N)``, without history.
        """
        with torch.no_grad():
            earned = REWARDS[self.convention](self.logits(y, self.behaviour(rollout)))
        return earned.view_as(rollout.rewards)

    def accuracy(self, y: Weights, batch: Imitation) -> Tensor:
        """How often it knows who did it, policy and expert weighing the same.

        Args:
            y: Weights.
            batch: Policy and expert.

        Returns:
            A scalar; ½ is guessing.
        """
        with torch.no_grad():
            policy = (self.logits(y, self.behaviour(batch.rollout)) > 0).float().mean()
            return (policy + (self.logits(y, batch.expert) < 0).float().mean()) / 2

    def behaviour(self, rollout: Rollout) -> Tensor:
        """The pairs of a rollout.

        Args:
            rollout: What the policy did.

        Returns:
            ``(T N, n + m)``.
        """
        return pairs(rollout.observations, rollout.actions, self.count)
