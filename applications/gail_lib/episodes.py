"""Whole episodes of a policy, however long the environment lets them be."""

from __future__ import annotations

from bilevel import BilevelError
from bilevel.imitation import Demonstrations, Policy, demonstrate, make_envs

DEMONSTRATIONS_SEED = 99
"""Of the first of the expert's episodes."""
EVALUATION_SEED = 10_000
"""Of the first episode on which a final policy is evaluated."""


def training_seed(iteration: int, run: int, environments: int) -> int:
    """The seed of a run's first environment after a reset; the others take the following ones.

    No two resets share a seed, nor do two runs with seeds below 1,000, nor any with the expert's
    episodes or those of the evaluation.

    Args:
        iteration: Before which the environments are reset.
        run: The run's seed.
        environments: How many there are.

    Returns:
        The seed.
    """
    first = (1000 * iteration + run) * environments
    # Only those that would meet the others move: published results are of the first few runs.
    apart = first + environments <= DEMONSTRATIONS_SEED or first >= 2 * EVALUATION_SEED
    return first if apart else first + 2**30  # past those of 60,000 iterations


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
