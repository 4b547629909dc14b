"""Environments of gymnasium: many side by side, and what a policy must know of them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.networks import Standardize
from bilevel.imitation.policies import CategoricalPolicy, GaussianPolicy

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class Task(NamedTuple):
    """What is seen and what can be done in an environment.

    Attributes:
        env: Its name.
        observations: n, the numbers of an observation.
        actions: How many actions there are, or the numbers of one.
        discrete: Whether an action is one of a few.
        low: The least that each number of an action may be; empty if discrete.
        high: The most.

    Example:
        >>> Task.of(make_envs("Pendulum-v1", 2))
        Task(env='Pendulum-v1', observations=3, actions=1, discrete=False, low=(-2.0,), high=(2.0,))
    """

    env: str
    observations: int
    actions: int
    discrete: bool
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def of(cls, envs: VectorEnv[Any, Any, Any]) -> Task:
        """Reads it off the spaces.

        Args:
            envs: What :func:`make_envs` gave.

        Returns:
            The task.
        """
        seen: Any = envs.single_observation_space
        done: Any = envs.single_action_space
        name = envs.spec.id if envs.spec else ""
        if hasattr(done, "n"):
            return cls(name, seen.shape[0], int(done.n), discrete=True)
        low, high = (tuple(bound.tolist()) for bound in (done.low, done.high))
        return cls(name, seen.shape[0], done.shape[0], False, low, high)

    def policy(self, inputs: Standardize | None = None) -> CategoricalPolicy | GaussianPolicy:
        """A new policy.

        Args:
            inputs: What the observations go through first.

        Returns:
            One of the kind that suits the actions.
        """
        kind = CategoricalPolicy if self.discrete else GaussianPolicy
        return kind(self.observations, self.actions, inputs=inputs)

    def clip(self, actions: Tensor) -> Tensor:
        """The actions as the environment is given them.

        Args:
            actions: As a policy drew them, ``(...)`` discrete, ``(..., m)`` continuous.

        Returns:
            Continuous ones within their range.
        """
        if not self.low:
            return actions
        low, high = (torch.tensor(bound, device=actions.device) for bound in (self.low, self.high))
        return actions.clamp(low, high)


def make_envs(name: str, count: int) -> VectorEnv[Any, Any, Any]:
    """Environments of one kind, which start anew in the step in which they end.

    Args:
        name: As gymnasium knows it, such as ``"CartPole-v1"``, or ``"package:Mine-v0"`` where
            importing the package registers it.
        count: N, how many.

    Returns:
        A vector environment with ``AutoresetMode.SAME_STEP``.

    Raises:
        BilevelError: If none is asked for, there is no such environment, or it has other
            observations than vectors or other actions than a finite number of them or vectors.

    Example:
        >>> make_envs("CartPole-v1", 2).num_envs
        2
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode

    if count < 1:
        raise BilevelError(f"count is {count}: there is nothing to play in; give 1 or more")
    # The sampler copies what it is shown, and checks what it relies on.
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
    try:
        envs = gymnasium.make_vec(
            name, count, vectorization_mode="sync", vector_kwargs=mode, disable_env_checker=True
        )
    except gymnasium.error.UnregisteredEnv as error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see gymnasium.registry"
        raise BilevelError(f"there is no environment {name!r}: {hint}") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise BilevelError(
            f"{name} cannot be made: {error}; install what it needs, or choose another"
        ) from error
    seen, done = envs.single_observation_space, envs.single_action_space
    spaces = gymnasium.spaces
    if not (isinstance(seen, spaces.Box) and len(seen.shape) == 1):
        raise BilevelError(
            f"{name} shows {seen}: policies read vectors; choose an environment with Box "
            "observations of one dimension"
        )
    if isinstance(done, spaces.Discrete) and done.start != 0:
        raise BilevelError(
            f"{name} counts its actions from {done.start}: policies count from 0; wrap it in "
            "gymnasium.wrappers.TransformAction"
        )
    vector = isinstance(done, spaces.Box) and len(done.shape) == 1
    if not (vector or isinstance(done, spaces.Discrete)):
        raise BilevelError(
            f"{name} is moved by {done}: policies choose one of n actions or a vector; choose an "
            "environment with Discrete or Box actions, or wrap it"
        )
    return envs
