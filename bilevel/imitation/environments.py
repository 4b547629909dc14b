"""Vectorised gymnasium environments, and their observation and action spaces."""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.networks import Standardize
from bilevel.imitation.policies import CategoricalPolicy, GaussianPolicy

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class Task(NamedTuple):
    """The observation and action spaces of an environment.

    Attributes:
        env: The environment's name.
        observations: n, the dimension of an observation.
        actions: The number of discrete actions, or the dimension m of a continuous one.
        discrete: Whether the actions are discrete.
        low: Lower bounds of a continuous action; empty if discrete.
        high: Upper bounds.

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
        """The task of given environments.

        Args:
            envs: As made by :func:`make_envs`, or of your own.

        Returns:
            The task.

        Raises:
            BilevelError: If the observations are not vectors, or the actions neither ``Discrete``
                nor vectors of a floating dtype.
        """
        observation: Any = envs.single_observation_space
        action: Any = envs.single_action_space
        name = envs.spec.id if envs.spec else ""
        _check_spaces(name or "the environment", observation, action)
        (n,) = observation.shape
        if hasattr(action, "n"):
            return cls(name, n, int(action.n), discrete=True)
        low, high = (tuple(bound.tolist()) for bound in (action.low, action.high))
        return cls(name, n, action.shape[0], False, low, high)

    def policy(self, inputs: Standardize | None = None) -> CategoricalPolicy | GaussianPolicy:
        """A new policy.

        Args:
            inputs: Applied to the observations first.

        Returns:
            Categorical for discrete actions, Gaussian for continuous ones.
        """
        kind = CategoricalPolicy if self.discrete else GaussianPolicy
        return kind(self.observations, self.actions, inputs=inputs)

    def clip(self, actions: Tensor) -> Tensor:
        """Clips continuous actions to their range, as the environment receives them.

        Args:
            actions: As sampled from a policy, ``(...)`` discrete, ``(..., m)`` continuous.

        Returns:
            The clipped actions; discrete ones unchanged.
        """
        if not self.low:
            return actions
        low, high = (torch.tensor(bound, device=actions.device) for bound in (self.low, self.high))
        return actions.clamp(low, high)


def make_envs(name: str, count: int) -> VectorEnv[Any, Any, Any]:
    """N copies of an environment, reset in the step in which an episode ends.

    Args:
        name: The gymnasium id, such as ``"CartPole-v1"``, or ``"package:Mine-v0"`` where importing
            the package registers it.
        count: N.

    Returns:
        A vector environment with ``AutoresetMode.SAME_STEP``.

    Raises:
        BilevelError: If ``count`` is not positive, there is no such environment, its observations
            are not vectors, or its actions are neither ``Discrete`` nor vectors of a floating
            dtype.

    Example:
        >>> make_envs("CartPole-v1", 2).num_envs
        2
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode
    from gymnasium.wrappers import TransformObservation

    if count < 1:
        raise BilevelError(f"count is {count}: at least one environment is needed; give 1 or more")
    # The sampler copies the observations, and makes the checks that it relies on. But a reset
    # within the step would overwrite the last observation of one that returns its own array.
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
    copied = partial(TransformObservation, func=np.copy, observation_space=None)
    try:
        envs = gymnasium.make_vec(
            name,
            count,
            vectorization_mode="sync",
            vector_kwargs=mode,
            wrappers=[copied],
            disable_env_checker=True,
        )
    except gymnasium.error.UnregisteredEnv as error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3)
        elsewhere = "see gymnasium.registry, or give package:Name-v0 to import its package"
        hint = f"did you mean {' or '.join(near)}?" if near else elsewhere
        raise BilevelError(f"there is no environment {name!r}: {hint}") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise BilevelError(
            f"{name} cannot be made: {error}; install what it needs, or choose another"
        ) from error
    Task.of(envs)  # checks the spaces
    return envs


def _check_spaces(name: str, observation: Any, action: Any) -> None:
    from gymnasium import spaces

    if not (isinstance(observation, spaces.Box) and len(observation.shape) == 1):
        raise BilevelError(
            f"{name} has observations {observation}: policies read vectors; wrap it in "
            "gymnasium.wrappers.FlattenObservation"
        )
    if isinstance(action, spaces.Discrete) and action.start != 0:
        raise BilevelError(
            f"{name} counts its actions from {action.start}: policies count from 0; wrap it in "
            "gymnasium.wrappers.TransformAction"
        )
    vector = isinstance(action, spaces.Box) and len(action.shape) == 1
    if vector and not np.issubdtype(action.dtype, np.floating):
        raise BilevelError(
            f"{name} has actions {action}: policies choose vectors of real numbers; choose an "
            "environment with a Box of a floating dtype, or wrap it in "
            "gymnasium.wrappers.TransformAction"
        )
    if not (vector or isinstance(action, spaces.Discrete)):
        raise BilevelError(
            f"{name} has actions {action}: policies choose one of n actions or a vector; wrap it "
            "in gymnasium.wrappers.TransformAction, with an action_space that is Discrete or a Box"
        )
