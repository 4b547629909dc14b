"""Playing a policy in many environments at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.policies import Policy

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


PLAYED = (torch.float32, "cpu")
"""What a policy computes in, and where."""


class Rollout(NamedTuple):
    """T steps of N environments side by side: the batch of an imitation game.

    Attributes:
        observations: Before each step, ``(T, N, n)``.
        actions: As the policy drew them, ``(T, N)`` discrete, ``(T, N, m)`` continuous.
        log_probs: Of the actions, under the policy that chose them, ``(T, N)``.
        next_observations: What each step led to, before any reset, ``(T, N, n)``.
        rewards: The environment's own, ``(T, N)``; an imitator learns without them.
        terminated: Where the task was over, ``(T, N)`` bool.
        ended: Where the episode was over, terminated or truncated, ``(T, N)`` bool.
        returns: Sums of rewards of the episodes that ended, in their order.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    next_observations: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    returns: Tensor


class Sampler:
    """Plays a policy, and goes on where it was with each call.

    Args:
        envs: What :func:`~bilevel.imitation.make_envs` gave.
        policy: Chooses the actions; a continuous action is clipped into its range for the
            environment only.
        seed: Of the environments, which take this one and those after it; the policy draws from
            torch's generator.

    Raises:
        BilevelError: If the environments do not start anew in the step in which they end.

    Example:
        >>> from bilevel.imitation import CategoricalPolicy, make_envs
        >>> sampler = Sampler(make_envs("CartPole-v1", 4), CategoricalPolicy(4, 2), seed=0)
        >>> sampler.collect(8).observations.shape
        torch.Size([8, 4, 4])
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], policy: Policy, *, seed: int = 0) -> None:
        from gymnasium.vector import AutoresetMode

        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise BilevelError(
                f"the environments' autoreset_mode is {mode}: resets would be taken for steps "
                "of the policy; use make_envs, or AutoresetMode.SAME_STEP"
            )
        self.envs = envs
        self.policy = policy
        space: Any = envs.single_action_space
        self._range = (space.low, space.high) if hasattr(space, "low") else None
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Leaves the episodes that are under way, and begins others.

        Args:
            seed: Of the environments.
        """
        shown, _ = self.envs.reset(seed=seed)
        self._shown = shown.astype(np.float32)
        self._total = np.zeros(self.envs.num_envs)  # of each episode under way

    def collect(self, steps: int) -> Rollout:
        """Plays on.

        Args:
            steps: T, in each environment.

        Returns:
            What happened.

        Raises:
            BilevelError: If no step is asked for, the policy is not on the CPU in float32, or an
                environment shows NaN or infinity, or ends at each step.
        """
        if steps < 1:
            raise BilevelError(f"steps is {steps}: there is nothing to play; give 1 or more")
        self._check_policy()
        # A vector environment's step takes 100 µs and less: what can wait until all is over waits.
        shown = np.empty((steps + 1, *self._shown.shape), np.float32)
        rewards = np.empty((steps, self.envs.num_envs), np.float32)
        terminated, truncated = np.empty((2, *rewards.shape), bool)
        acted, finals = [], {}
        shown[0] = self._shown
        player = self.policy.player()
        for t in range(steps):
            action = player(shown[t])
            shown[t + 1], rewards[t], terminated[t], truncated[t], info = self.envs.step(
                self._allowed(action)
            )
            acted.append(action)
            if "final_obs" in info:
                finals[t] = info["final_obs"]
        ended = terminated | truncated
        after = shown[1:].copy()
        for t, final in finals.items():
            after[t, ended[t]] = np.stack(final[ended[t]])
        self._check_shown(after, ended)
        self._shown = shown[-1]
        observations, actions = torch.from_numpy(shown[:-1]), torch.from_numpy(np.stack(acted))
        with torch.no_grad():
            log_probs = self.policy(observations).log_prob(actions)
        told = map(torch.from_numpy, (after, rewards, terminated, ended))
        returns = self._returns(rewards, ended)
        return Rollout._make((observations, actions, log_probs, *told, returns))

    def _allowed(self, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The actions as the environments take them."""
        return actions if self._range is None else actions.clip(*self._range)

    def _returns(self, rewards: np.ndarray[Any, Any], ended: np.ndarray[Any, Any]) -> Tensor:
        """Of the episodes that ended; the others' rewards are kept for the next rollout."""
        totals = self._total + rewards.cumsum(0, dtype=np.float64)
        paid, returns = np.zeros_like(self._total), []
        for t, number in np.argwhere(ended):
            returns.append(totals[t, number] - paid[number])
            paid[number] = totals[t, number]
        self._total = totals[-1] - paid
        return torch.tensor(returns, dtype=torch.float32)

    def _check_policy(self) -> None:
        for name, tensor in self.policy.state_dict().items():
            if tensor.is_floating_point() and (tensor.dtype, tensor.device.type) != PLAYED:
                raise BilevelError(
                    f"the policy's {name} is {tensor.dtype} on {tensor.device}: environments are "
                    "played on the CPU in float32; call policy.cpu().float()"
                )

    def _check_shown(self, shown: np.ndarray[Any, Any], ended: np.ndarray[Any, Any]) -> None:
        name = self.envs.spec.id if self.envs.spec else "the environment"
        if not np.isfinite(shown).all():
            raise BilevelError(
                f"{name} shows NaN or infinity: nothing can be learned from it; check the "
                "environment, or wrap it so that it ends before"
            )
        if len(ended) > 1 and ended.all():
            raise BilevelError(
                f"{name} ends at each step: there is no behaviour to learn, only a first action; "
                "check its termination and its time limit"
            )
