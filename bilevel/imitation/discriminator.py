"""The follower of imitation learning: it tells the policy's behaviour from the expert's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bilevel.errors import BilevelError
from bilevel.imitation.environments import Task
from bilevel.imitation.networks import Standardize, mlp
from bilevel.imitation.rollouts import Rollout
from bilevel.problem import FollowerProblem
from bilevel.tree import ravel

Weights = dict[str, Tensor]

REWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "survive": lambda logits: -F.logsigmoid(logits),
    "finish": lambda logits: F.logsigmoid(-logits),
    "neutral": lambda logits: -logits,
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


def pairs(task: Task, observations: Tensor, actions: Tensor) -> Tensor:
    """States and actions side by side, as a discriminator reads them.

    Args:
        task: Whose they are.
        observations: ``(..., n)``.
        actions: ``(...)`` numbers of discrete actions, or ``(..., m)``.

    Returns:
        ``(B, n + m)``, discrete actions one-hot, continuous ones clipped into their range, as the
        environment was given them. A policy's own, beyond it, would give the policy away.

    Raises:
        BilevelError: If they are not of the task: other shapes, no whole numbers where actions are
            discrete.

    Example:
        >>> pairs(Task("walk", 2, 2, discrete=True), torch.zeros(1, 2), torch.tensor([1]))
        tensor([[0., 0., 0., 1.]])
    """
    if task.discrete and actions.is_floating_point():
        raise BilevelError(
            f"the actions are {actions.dtype}: {task.env} takes one of {task.actions}, counted "
            "from 0; store them as integers"
        )
    shape = observations.shape[:-1] if task.discrete else (*observations.shape[:-1], task.actions)
    fits = not task.discrete or bool(((actions >= 0) & (actions < task.actions)).all())
    if observations.shape[-1:] != (task.observations,) or actions.shape != shape or not fits:
        raise BilevelError(
            f"states {tuple(observations.shape)} and actions {tuple(actions.shape)} are not those "
            f"of {task}: they were recorded elsewhere; record them in {task.env}"
        )
    told = F.one_hot(actions.long(), task.actions) if task.discrete else task.clip(actions)
    return torch.cat([observations, told.to(observations.dtype)], -1).flatten(0, -2)


class Discriminator(FollowerProblem):
    r"""max over D of E_π log D(s, a) + E_expert log(1 − D(s, a)), eq. 9 of Jiang et al. (2021).

    D is a small tanh network whose weights are y, a dict of tensors that the whole batch shares: 1
    says "the policy". The policy earns, by convention,

    - ``"survive"``: −log D ≥ 0. Each step pays, so episodes grow long: right where the expert's
      are, as in balancing, and wrong where it wants to be done.
    - ``"finish"``: log(1 − D) ≤ 0. Each step costs, so episodes grow short: right where a goal is
      to be reached.
    - ``"neutral"``: log(1 − D) − log D, of either sign (Fu et al., 2018). A D that knows nothing
      pays nothing, so only what was learned teaches.

    Ho & Ermon (2016) chose one of the first two by environment. A constant D already makes a policy
    survive, or finish: compare with it.

    Args:
        task: Whose states and actions are told apart.
        hidden: Widths of the hidden layers.
        reward: The convention.
        inputs: What pairs go through first: a :class:`Standardize` of the expert's brings all
            numbers to one scale.
        max_norm: Y is the ball of that radius, ‖y‖ ≤ R; None for all weights. A few pairs of an
            expert can be told apart ever more sharply by ever larger weights.

    Raises:
        BilevelError: If there is no such convention, or the radius is not positive.

    Example:
        >>> follower = Discriminator(Task("CartPole-v1", 4, 2, discrete=True), reward="survive")
        >>> sorted(follower.init(None))[0], follower.size
        ('0.bias', 2561)
    """

    sense: Literal["min", "max"] = "max"

    def __init__(
        self,
        task: Task,
        *,
        hidden: Sequence[int] = (64, 32),
        reward: str,
        inputs: Standardize | None = None,
        max_norm: float | None = None,
    ) -> None:
        if max_norm is not None and not max_norm > 0:
            raise BilevelError(f"max_norm is {max_norm}: Y would be a point; give more than 0")
        if reward not in REWARDS:
            raise BilevelError(
                f"there is no reward {reward!r}: its sign decides whether episodes grow long or "
                f"short; choose from {', '.join(REWARDS)}"
            )
        self.task = task
        self.network: nn.Module = mlp([task.observations + task.actions, *hidden, 1], inputs=inputs)
        self.convention = reward
        self.max_norm = max_norm

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

    def project(self, y: Weights, batch: Imitation | None) -> Weights:
        """The nearest weights whose norm is at most R."""
        if self.max_norm is None:
            return y
        shrink = (self.max_norm / ravel(y).norm()).clamp(max=1)
        return {name: shrink * leaf for name, leaf in y.items()}

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
            policy, expert = (
                self.logits(y, behaviour).sign().mean()
                for behaviour in (self.behaviour(batch.rollout), batch.expert)
            )
            return (2 + policy - expert) / 4

    def behaviour(self, rollout: Rollout) -> Tensor:
        """The pairs of a rollout.

        Args:
            rollout: What the policy did.

        Returns:
            ``(T N, n + m)``.
        """
        return pairs(self.task, rollout.observations, rollout.actions)
