"""Playing a policy in many environments at once."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.policies import Policy

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class Rollout(NamedTuple):
    """T steps of N environments side by side: the batch of an imitation game.

    Attributes:
        observations: Before each step, ``(T, N, n)``.
        actions: ``(T, N)`` discrete, ``(T, N, m)`` continuous.
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


def make_envs(name: str, count: int) -> VectorEnv[Any, Any, Any]:
    """Environments of one kind, which start anew in the step in which they end.

    Args:
        name: As gymnasium knows it, such as ``"CartPole-v1"``.
        count: N, how many.

    Returns:
        A vector environment with ``AutoresetMode.SAME_STEP``.

    Raises:
        BilevelError: If there is no such environment, or it has other observations than vectors or
            other actions than a finite number of them or vectors.

    Example:
        >>> make_envs("CartPole-v1", 2).num_envs
        2
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode

    if name not in gymnasium.registry:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see gymnasium.registry"
        raise BilevelError(f"there is no environment {name!r}: {hint}")
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    envs = gymnasium.make_vec(
        name,
        count,
        vectorization_mode="sync",
        vector_kwargs=mode,
        disable_env_checker=True,  # it looks at every step; what we rely on is checked in Sampler
    )
    seen, done = envs.single_observation_space, envs.single_action_space
    spaces = gymnasium.spaces
    if not (isinstance(seen, spaces.Box) and len(seen.shape) == 1):
        raise BilevelError(
            f"{name} shows {seen}: policies read vectors; choose an environment with Box "
            "observations of one dimension"
        )
    if not isinstance(done, spaces.Discrete | spaces.Box):
        raise BilevelError(
            f"{name} is moved by {done}: policies choose one of n actions or a vector; choose an "
            "environment with Discrete or Box actions"
        )
    return envs


class Sampler:
    """Plays a policy, and goes on where it was with each call.

    Args:
        envs: What :func:`make_envs` gave.
        policy: Chooses the actions; a continuous action is clipped into its range for the
            environment only.
        seed: Of the environments; the policy draws from torch's generator.

    Example:
        >>> from bilevel.imitation import CategoricalPolicy
        >>> sampler = Sampler(make_envs("CartPole-v1", 4), CategoricalPolicy(4, 2), seed=0)
        >>> sampler.collect(8).observations.shape
        torch.Size([8, 4, 4])
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], policy: Policy, *, seed: int = 0) -> None:
        self.envs = envs
        self.policy = policy
        observations, _ = envs.reset(seed=seed)
        self._observations = self._read(observations)
        self._return = np.zeros(envs.num_envs)

    def collect(self, steps: int) -> Rollout:
        """Plays on.

        Args:
            steps: T, in each environment.

        Returns:
            What happened.

        Raises:
            BilevelError: If an environment shows NaN or infinity.
        """
        rows: list[tuple[Tensor, ...]] = []
        returns: list[float] = []
        for _ in range(steps):
            before = self._observations
            actions, log_probs = self.policy.act(before)
            shown, rewards, terminated, truncated, info = self.envs.step(self._allowed(actions))
            ended = terminated | truncated
            after = self._read(shown)
            self._observations = after
            if ended.any():
                after = after.clone()
                after[torch.as_tensor(ended)] = self._read(np.stack(info["final_obs"][ended]))
            self._return += rewards
            returns.extend(self._return[ended])
            self._return[ended] = 0
            gained = torch.as_tensor(rewards, dtype=torch.float32)
            over = (torch.as_tensor(part) for part in (terminated, ended))
            rows.append((before, actions, log_probs, after, gained, *over))
        columns = (torch.stack(column) for column in zip(*rows, strict=True))
        return Rollout._make((*columns, torch.tensor(returns)))

    def _allowed(self, actions: Tensor) -> np.ndarray[Any, Any]:
        """The actions as the environments take them."""
        space: Any = self.envs.single_action_space
        chosen: np.ndarray[Any, Any] = actions.numpy()
        return chosen.clip(space.low, space.high) if hasattr(space, "low") else chosen

    def _read(self, observations: np.ndarray[Any, Any]) -> Tensor:
        if not np.isfinite(observations).all():
            raise BilevelError(
                "an environment shows NaN or infinity: nothing can be learned from it; check the "
                "environment, or wrap it so that it ends before"
            )
        return torch.as_tensor(observations, dtype=torch.float32)
