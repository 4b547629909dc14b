"""The discriminator of GAIL: the follower of an imitation game."""

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
"""The policy's reward as a function of D's logits: see :class:`Discriminator`."""


class ImitationBatch(NamedTuple):
    """The batch of an imitation game.

    Attributes:
        rollout: Of the policy.
        expert: The expert's state–action pairs, ``(E, n + m)``, see :func:`pairs`.
    """

    rollout: Rollout
    expert: Tensor


def pairs(task: Task, observations: Tensor, actions: Tensor) -> Tensor:
    """State–action pairs, the inputs of a discriminator: states and actions concatenated.

    Args:
        task: The task that they come from.
        observations: ``(..., n)``.
        actions: ``(...)`` indices of discrete actions, or ``(..., m)``.

    Returns:
        ``(B, n + m)``. Discrete actions are one-hot; continuous ones are clipped to their range, as
        the environment receives them, since only a policy's raw actions lie outside it, which would
        identify the policy.

    Raises:
        BilevelError: If the shapes do not fit the task, or discrete actions are not integers or
            out of range.

    Example:
        >>> pairs(Task("walk", 2, 2, discrete=True), torch.zeros(1, 2), torch.tensor([1]))
        tensor([[0., 0., 0., 1.]])
    """
    if task.discrete and actions.is_floating_point():
        raise BilevelError(
            f"the actions are {actions.dtype}: {task.env} takes one of {task.actions} actions, "
            "numbered from 0; store them as integers"
        )
    shape = observations.shape[:-1] if task.discrete else (*observations.shape[:-1], task.actions)
    if observations.shape[-1:] != (task.observations,) or actions.shape != shape:
        taken = "(...)" if task.discrete else f"(..., {task.actions})"
        raise BilevelError(
            f"states {tuple(observations.shape)} and actions {tuple(actions.shape)} are not those "
            f"of {task.env}: it has states (..., {task.observations}) and actions {taken}; reshape "
            "them, or record others there"
        )
    if task.discrete and len(others := actions[(actions < 0) | (actions >= task.actions)]):
        raise BilevelError(
            f"there is an action {int(others[0])}: {task.env} takes one of {task.actions} "
            "actions, numbered from 0; record them there"
        )
    encoded = F.one_hot(actions.long(), task.actions) if task.discrete else task.clip(actions)
    return torch.cat([observations, encoded.to(observations.dtype)], -1).flatten(0, -2)


class Discriminator(FollowerProblem):
    r"""max over D of E_π log D(s, a) + E_expert log(1 − D(s, a)), eq. 9 of Jiang et al. (2021).

    D is a tanh network; its weights y are a dict of tensors, shared by the batch. D(s, a) is the
    probability that a pair is the policy's. The policy's reward is one of

    - ``"survive"``: −log D ≥ 0. Every step is rewarded, which favours long episodes: right where
      the expert survives, as in balancing, and wrong where it reaches a goal.
    - ``"finish"``: log(1 − D) ≤ 0. Every step is penalised, which favours short episodes: right
      where a goal is to be reached.
    - ``"neutral"``: log(1 − D) − log D, of either sign (Fu et al., 2018); 0 at D = ½, so an
      untrained D favours neither.

    Ho & Ermon (2016) chose one of the first two by environment. Even a constant D makes a policy
    survive, or finish: compare with one.

    A discriminator of your own overrides :meth:`objective` and :meth:`reward`, or :meth:`pairs` and
    :attr:`width` if it sees something else, such as states only. A :attr:`network` of your own
    takes the place of D's after ``__init__``; what does not require gradients in it stays as it is.

    Args:
        task: The environment's observation and action spaces.
        hidden: Widths of the hidden layers.
        reward: ``"survive"``, ``"finish"`` or ``"neutral"``.
        inputs: Applied to the pairs first, such as :class:`Standardize` fitted to the expert's and
            to those of an untrained policy.
        max_norm: Radius R of the ball Y, ‖y‖ ≤ R; None for no bound. Without one, ever larger
            weights separate a small expert sample ever more sharply.

    Raises:
        BilevelError: If there is no such reward, or the radius is not positive.

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
        self.network: nn.Module = mlp([self.width, *hidden, 1], inputs=inputs)
        self.reward_name = reward
        self.max_norm = max_norm

    @property
    def width(self) -> int:
        """The features of a pair; a subclass that overrides :meth:`pairs` overrides it too.

        Returns:
            n + m.
        """
        return self.task.observations + self.task.actions

    @property
    def size(self) -> int:
        """The number of D's weights.

        Returns:
            m.
        """
        return sum(weight.numel() for weight in self._trained().values())

    def _trained(self) -> Weights:
        """The network's parameters, but for those of layers that are frozen."""
        named = self.network.named_parameters()
        trained: Weights = {name: weight for name, weight in named if weight.requires_grad}
        if not trained:
            raise BilevelError(
                "the discriminator's network has no weight to train: all are frozen, as those of "
                "a leader are during a solve; unfreeze some, and keep it out of the leader"
            )
        return trained

    def init(self, batch: ImitationBatch | None) -> Weights:
        """The network's initial weights, scaled down to norm R where theirs is larger."""
        weights = {name: p.detach().clone() for name, p in self._trained().items()}
        return self.project(weights, batch)

    def project(self, y: Weights, batch: ImitationBatch | None) -> Weights:
        """The nearest weights of norm at most R."""
        if self.max_norm is None:
            return y
        shrink = (self.max_norm / ravel(y).norm()).clamp(max=1)
        return {name: shrink * leaf for name, leaf in y.items()}

    def logits(self, y: Weights, inputs: Tensor) -> Tensor:
        """Log D − log(1 − D).

        Args:
            y: Weights.
            inputs: State–action pairs, ``(B, n + m)``.

        Returns:
            ``(B,)``.
        """
        # A copy, since a network of one's own may work in place.
        scores: Tensor = functional_call(self.network, y, (inputs.clone(),))
        return scores.squeeze(-1)

    def objective(self, leader: Any, y: Weights, batch: ImitationBatch) -> Tensor:
        """E_π log D + E_expert log(1 − D), estimated on the batch, a scalar."""
        policy = F.logsigmoid(self.logits(y, self.pairs(batch.rollout))).mean()
        return policy + F.logsigmoid(-self.logits(y, batch.expert)).mean()

    def reward(self, y: Weights, rollout: Rollout) -> Tensor:
        """The rewards that replace the environment's.

        Args:
            y: Weights.
            rollout: Of the policy.

        Returns:
            ``(T, N)``, detached.
        """
        with torch.no_grad():
            rewards = REWARDS[self.reward_name](self.logits(y, self.pairs(rollout)))
        return rewards.view_as(rollout.rewards)

    def accuracy(self, y: Weights, batch: ImitationBatch) -> Tensor:
        """Balanced accuracy: the mean of the accuracies on the policy's and the expert's pairs.

        Args:
            y: Weights.
            batch: Rollout and expert pairs.

        Returns:
            A scalar; ½ is chance.
        """
        with torch.no_grad():
            policy, expert = (
                self.logits(y, inputs).sign().mean()
                for inputs in (self.pairs(batch.rollout), batch.expert)
            )
            return (2 + policy - expert) / 4

    def pairs(self, rollout: Rollout) -> Tensor:
        """The state–action pairs of a rollout, see :func:`pairs`.

        Args:
            rollout: Of the policy.

        Returns:
            ``(T N, n + m)``.
        """
        return pairs(self.task, rollout.observations, rollout.actions)
