"""Demonstrations on disk: a ``.npz`` of our own, and the episodes of a Minari dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from bilevel.errors import BilevelError
from bilevel.experiment.files import atomic_write
from bilevel.imitation.demonstrations import Demonstrations

# TypeError: a .npy, which is no archive (in Python 3.10 an AttributeError), or an array of text.
UNREADABLE = (OSError, KeyError, ValueError, EOFError, TypeError, AttributeError, BadZipFile)


def save_demonstrations(path: Path, demonstrations: Demonstrations) -> None:
    """Writes a ``.npz``.

    Args:
        path: The file.
        demonstrations: What to keep.

    Raises:
        BilevelError: If it cannot be written.
    """
    arrays: dict[str, Any] = demonstrations._asdict()  # the name becomes an array too
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_demonstrations(path: Path, env: str) -> Demonstrations:
    """Reads what :func:`save_demonstrations` wrote, or another program.

    Args:
        path: The file.
        env: The environment that they must be of.

    Returns:
        The demonstrations, whatever kind of numbers the file holds, as float32, and int64 for
        actions that are no floating point numbers.

    Raises:
        BilevelError: If there are none, or they are of another environment, empty, of shapes that
            do not fit, or not finite.

    Example:
        >>> import tempfile
        >>> from bilevel.imitation import MountainCarExpert, demonstrate
        >>> shown = demonstrate("MountainCar-v0", MountainCarExpert(), 2)
        >>> file = Path(tempfile.mkdtemp()) / "expert.npz"
        >>> save_demonstrations(file, shown)
        >>> load_demonstrations(file, "MountainCar-v0").returns.tolist() == shown.returns.tolist()
        True
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            name, *arrays = (np.atleast_1d(file[field]) for field in Demonstrations._fields)
        parts = [torch.as_tensor(array) for array in arrays]
    except FileNotFoundError as error:
        raise BilevelError(
            f"there are no demonstrations {path}: nothing to imitate; record some first"
        ) from error
    except UNREADABLE as error:
        raise BilevelError(
            f"{path} holds no demonstrations ({type(error).__name__}): it is truncated or of "
            "another kind; name a .npz with the arrays " + ", ".join(Demonstrations._fields)
        ) from error
    return _checked(str(path), env, Demonstrations._make((str(name[0]), *parts)))


def save_minari(name: str, demonstrations: Demonstrations) -> None:
    """Makes a dataset of `Minari <https://minari.farama.org>`_, in its folder of local datasets.

    Args:
        name: Of the dataset, such as ``"mountain-car/scripted-v0"``.
        demonstrations: What to keep.

    Raises:
        BilevelError: If Minari is not installed, or refuses the name.
    """
    minari = _minari()
    lengths = demonstrations.lengths.tolist()
    columns = (demonstrations.observations, demonstrations.actions, demonstrations.rewards)
    episodes = []
    for number, (states, actions, rewards) in enumerate(
        zip(*(column.split(lengths) for column in columns), strict=True)
    ):
        over = np.zeros((2, len(states)), bool)
        over[int(not demonstrations.terminated[number]), -1] = True
        seen = torch.cat([states, demonstrations.last[number : number + 1]])
        episodes.append(
            minari.data_collector.EpisodeBuffer(
                number, None, None, *(part.numpy() for part in (seen, actions, rewards)), *over
            )
        )
    try:
        minari.create_dataset_from_buffers(name, episodes, env=demonstrations.env)
    except ValueError as error:
        raise BilevelError(f"Minari refuses {name!r}: {error}; give another name") from error


def load_minari(name: str, env: str) -> Demonstrations:
    """Reads the episodes of a Minari dataset, which is downloaded if it is not there.

    Args:
        name: Of the dataset.
        env: The environment that they must be of.

    Returns:
        The demonstrations.

    Raises:
        BilevelError: If Minari is not installed or has no such dataset, or its episodes are of
            another environment, empty, of shapes that do not fit, or not finite.
    """
    minari = _minari()
    try:
        dataset = minari.load_dataset(name, download=True)
    except Exception as error:  # of Minari, of the network, of the files
        raise BilevelError(
            f"Minari gave no dataset {name!r}: {error}; minari list local tells those that are here"
        ) from error
    episodes = list(dataset.iterate_episodes())
    if not all(isinstance(episode.observations, np.ndarray) for episode in episodes):
        raise BilevelError(f"{name} shows no vectors: policies read vectors; flatten its states")
    if not episodes:
        raise BilevelError(f"{name} is empty: there is nothing to imitate; record some first")
    columns = (
        np.concatenate([episode.observations[:-1] for episode in episodes]),
        np.concatenate([episode.actions for episode in episodes]),
        np.concatenate([episode.rewards for episode in episodes]),
        np.array([len(episode.rewards) for episode in episodes]),
        np.stack([episode.observations[-1] for episode in episodes]),
        np.array([episode.terminations[-1] for episode in episodes]),
    )
    found = Demonstrations._make((dataset.env_spec.id, *map(torch.from_numpy, columns)))
    return _checked(name, env, found)


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise BilevelError(
            "Minari is not installed: its datasets cannot be read or written; pip install "
            '"bilevel[minari]"'
        ) from error
    return minari


def _checked(source: str, env: str, found: Demonstrations) -> Demonstrations:
    if _without_module(found.env) != _without_module(env):
        raise BilevelError(
            f"{source} shows {found.env}, not {env}: an expert of one task is none of another; "
            f"name demonstrations of {env}"
        )
    found = _cast(found)
    by_step = (found.observations, found.actions, found.rewards)
    by_episode = (found.lengths, found.last, found.terminated)
    steps, episodes = ([len(part) for part in parts] for parts in (by_step, by_episode))
    total, least = sum(found.lengths.tolist()), min(found.lengths.tolist(), default=0)
    if {*steps} != {total} or len({*episodes}) > 1 or least < 1:
        raise BilevelError(
            f"{source} holds {steps} observations, actions and rewards, {episodes} lengths, last "
            f"and terminated, and lengths from {least} on that add up to {total}: it is empty or "
            "does not fit together; record it again"
        )
    if not all(part.isfinite().all() for part in (*by_step, found.last)):
        raise BilevelError(f"{source} holds NaN or infinity: record it again")
    return found


def _without_module(env: str) -> str:
    """What gymnasium calls ``module:Name-v0`` once the module is imported."""
    return env.rpartition(":")[2]


def _cast(found: Demonstrations) -> Demonstrations:
    """The same numbers as a rollout holds them, whatever they were stored as."""
    kind = torch.float32 if found.actions.is_floating_point() else torch.int64
    return found._replace(
        observations=found.observations.float(),
        actions=found.actions.to(kind),
        rewards=found.rewards.float(),
        lengths=found.lengths.long(),
        last=found.last.float(),
        terminated=found.terminated.bool(),
    )
