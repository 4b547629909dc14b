"""Whole episodes of a policy, however long the environment lets them be."""

from __future__ import annotations

from bilevel import BilevelError
from bilevel.imitation import Demonstrations, Policy, demonstrate, make_envs


def play(env: str, policy: Policy, episodes: int, seed: int) -> Demonstrations:
    """Plays whole episodes.

    Args:
        env: The environment's name.
        policy: The policy to play.
        episodes: Number of episodes.
        seed: Of the environments.

    Returns:
        The episodes.
    """
    return demonstrate(env, policy, episodes, seed=seed, max_steps=time_limit(env))


def time_limit(env: str) -> int:
    """The maximum number of steps of an episode.

    Args:
        env: The environment's name.

    Returns:
        The ``max_episode_steps`` that it is registered with.

    Raises:
        BilevelError: If there is none.
    """
    # Not gymnasium.spec(env), which knows no "package:Name-v0".
    envs = make_envs(env, 1)
    envs.close()
    limit = envs.spec.max_episode_steps if envs.spec else None
    if limit is None:
        raise BilevelError(
            f"{env} is registered without a time limit: policies are evaluated on whole episodes, "
            "and one may never end; give gymnasium.register a max_episode_steps"
        )
    return limit
