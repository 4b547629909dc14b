"""Whom to imitate in an environment: a file's episodes, a script's, or a trained policy's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bilevel.imitation import (
    Demonstrations,
    MountainCarExpert,
    demonstrate,
    load_demonstrations,
    load_minari,
    save_demonstrations,
    train_expert,
)

EPISODES = 100
"""Episodes that are recorded: as many as tell how good the expert is."""

SCRIPTS = {"MountainCar-v0": MountainCarExpert}
TRAINING = {"CartPole-v1": 40, "Pendulum-v1": 60}
"""Iterations of TRPO until an expert is good."""
OTHERS = 100


def demonstrations(
    env: str, source: str | None, folder: Path, tell: Callable[[int, int], None]
) -> Demonstrations:
    """The expert's episodes, recorded once and kept in ``folder``.

    Args:
        env: The environment's name.
        source: A ``.npz`` or ``minari:NAME``; None for a scripted expert or one trained by TRPO.
        folder: Where they are kept.
        tell: Is told how many iterations of how many are done.

    Returns:
        Whole episodes.
    """
    if source is not None:
        name = source.removeprefix("minari:")
        return load_minari(name, env) if name != source else load_demonstrations(Path(name), env)
    path = folder / f"{env.replace('/', '-')}.npz"
    if path.exists():
        return load_demonstrations(path, env)
    if env in SCRIPTS:
        expert = SCRIPTS[env]()
    else:
        iterations = TRAINING.get(env, OTHERS)
        expert = train_expert(env, iterations, callback=lambda done, _: tell(done + 1, iterations))
    found = demonstrate(env, expert, EPISODES, seed=99)
    save_demonstrations(path, found)
    return found
