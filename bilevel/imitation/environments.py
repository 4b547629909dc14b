"""Environments of gymnasium: many side by side, and what a policy must know of them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

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

    Example:
        >>> Task.of(make_envs("CartPole-v1", 2))
        Task(env='CartPole-v1', observations=4, actions=2, discrete=True)
    """

    env: str
    observations: int
    actions: int
    discrete: bool

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
        discrete = hasattr(done, "n")
        name = envs.spec.id if envs.spec else ""
        return cls(name, seen.shape[0], int(done.n if discrete else done.shape[0]), discrete)

    def policy(self, inputs: Standardize | None = None) -> CategoricalPolicy | GaussianPolicy:
        """A new policy.

        Args:
            inputs: What the observations go through first.

        Returns:
            One of the kind that suits the actions.
        """
        kind = CategoricalPolicy if self.discrete else GaussianPolicy
        return kind(self.observations, self.actions, inputs=inputs)


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
    # The sampler copies what it is shown, and checks what it relies on.
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
    try:
        envs = gymnasium.make_vec(
            name, count, vectorization_mode="sync", vector_kwargs=mode, disable_env_checker=True
        )
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
    counted = isinstance(done, spaces.Discrete) and done.start == 0
    if not (counted or (isinstance(done, spaces.Box) and len(done.shape) == 1)):
        raise BilevelError(
            f"{name} is moved by {done}: policies choose one of n actions or a vector; choose an "
            "environment with Discrete or Box actions, or wrap it"
        )
    return envs
