"""The expert of an environment: demonstrations from a file, a script, or a trained policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bilevel.imitation import (
    Demonstrations,
    MountainCarExpert,
    load_demonstrations,
    load_minari,
    save_demonstrations,
    train_expert,
)
from gail_lib.episodes import DEMONSTRATIONS_SEED, play

RECORDED_EPISODES = 100
"""Recorded episodes: enough to estimate the expert's return."""

SCRIPTED = {"MountainCar-v0": MountainCarExpert}
TRAINING_ITERATIONS = {"CartPole-v1": 40, "Pendulum-v1": 60}


def training_iterations(env: str) -> int:
    """Iterations of TRPO that train an expert.

    Args:
        env: The environment's name.
    """
    return TRAINING_ITERATIONS.get(env, 100)


def expert_demonstrations(
    env: str,
    source: str | None,
    folder: Path,
    progress: Callable[[int, int], None],
    *,
    iterations: int,
    episodes: int,
) -> Demonstrations:
    """The expert's episodes, kept in ``folder`` and recorded anew only if these are too few.

    Args:
        env: The environment's name.
        source: A ``.npz`` or ``minari:NAME``; None for a scripted expert or one trained by TRPO.
        folder: Where they are kept.
        progress: Called with the number of completed iterations and their total.
        iterations: Iterations of TRPO that train an expert.
        episodes: Recorded episodes.

    Returns:
        Whole episodes.
    """
    if source is not None:
        name = source.removeprefix("minari:")
        return load_minari(name, env) if name != source else load_demonstrations(Path(name), env)
    path = folder / f"{re.sub('[/:]', '-', env)}.npz"  # Windows has no : in names of files
    if path.exists() and len((kept := load_demonstrations(path, env)).lengths) >= episodes:
        return kept
    if env in SCRIPTED:
        expert = SCRIPTED[env]()
    else:
        expert = train_expert(env, iterations, callback=lambda i, _: progress(i + 1, iterations))
    demonstrations = play(env, expert, episodes, seed=DEMONSTRATIONS_SEED)
    save_demonstrations(path, demonstrations)
    return demonstrations
