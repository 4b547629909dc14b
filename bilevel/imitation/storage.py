"""Demonstrations on disk: ``.npz`` files and Minari datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilevel.errors import BilevelError
from bilevel.experiment.files import atomic_write
from bilevel.imitation.demonstrations import Demonstrations


def save_demonstrations(path: Path | str, demonstrations: Demonstrations) -> None:
    """Writes demonstrations to a ``.npz`` file.

    Args:
        path: The file.
        demonstrations: What to save.

    Raises:
        BilevelError: If it cannot be written.
    """
    arrays: dict[str, Any] = demonstrations._asdict()  # the name becomes an array too
    with atomic_write(Path(path)) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_demonstrations(path: Path | str, env: str) -> Demonstrations:
    """Reads demonstrations from a ``.npz`` file with the fields of :class:`Demonstrations`.

    Args:
        path: The file.
        env: The expected environment.

    Returns:
        The demonstrations, cast to float32; discrete actions to int64.

    Raises:
        BilevelError: If there is no such file, or its demonstrations are of another environment,
            empty, inconsistent in shape, or not finite.

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
        # torch takes this machine's byte order alone.
        parts = [torch.as_tensor(part.astype(part.dtype.newbyteorder("="))) for part in arrays]
    except FileNotFoundError as error:
        raise BilevelError(
            f"there is no file of demonstrations {path}: record one with save_demonstrations first"
        ) from error
    except Exception as error:  # of numpy, of zipfile, of zlib: from a damaged file it may be any
        raise BilevelError(
            f"{path} holds no demonstrations ({type(error).__name__}): it is truncated or of "
            "another format; give a .npz with the arrays " + ", ".join(Demonstrations._fields)
        ) from error
    return _validated(str(path), env, Demonstrations._make((str(name[0]), *parts)))


def save_minari(name: str, demonstrations: Demonstrations) -> None:
    """Creates a local `Minari <https://minari.farama.org>`_ dataset.

    Args:
        name: Of the dataset, such as ``"mountain-car/scripted-v0"``.
        demonstrations: What to save.

    Raises:
        BilevelError: If Minari is not installed, or refuses the name, or an environment that is
            registered with a class in place of ``"module:Class"``.
    """
    minari = _minari()
    lengths = demonstrations.lengths.tolist()
    columns = (demonstrations.observations, demonstrations.actions, demonstrations.rewards)
    episodes = []
    for index, (states, actions, rewards) in enumerate(
        zip(*(column.split(lengths) for column in columns), strict=True)
    ):
        terminations, truncations = ended = np.zeros((2, len(states)), bool)
        ended[int(not demonstrations.terminated[index]), -1] = True
        states = torch.cat([states, demonstrations.last[index : index + 1]])
        arrays = (part.numpy() for part in (states, actions, rewards))
        episodes.append(
            minari.data_collector.EpisodeBuffer(
                index, None, None, *arrays, terminations, truncations
            )
        )
    try:
        minari.create_dataset_from_buffers(name, episodes, env=demonstrations.env)
    except ValueError as error:
        raise BilevelError(
            f"Minari refuses {name!r}: {error}; give another name, or register an environment of a "
            'class by text: entry_point="module:Class"'
        ) from error


def load_minari(name: str, env: str) -> Demonstrations:
    """Reads the episodes of a Minari dataset; downloads it if it is not there.

    Args:
        name: Of the dataset.
        env: The expected environment; that of the episodes where the dataset names none.

    Returns:
        The demonstrations.

    Raises:
        BilevelError: If Minari is not installed or has no such dataset, or its episodes are of
            another environment, empty, inconsistent in shape, or not finite.
    """
    minari = _minari()
    try:
        dataset = minari.load_dataset(name, download=True)
    except Exception as error:  # of Minari, of the network, of the files
        raise BilevelError(
            f"Minari gave no dataset {name!r}: {error}; minari list local lists those that are here"
        ) from error
    episodes = list(dataset.iterate_episodes())
    if not all(isinstance(episode.observations, np.ndarray) for episode in episodes):
        raise BilevelError(
            f"{name} has no vector observations: policies read vectors; flatten them"
        )
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
    named = dataset.env_spec.id if dataset.env_spec else env
    demonstrations = Demonstrations._make((named, *map(torch.from_numpy, columns)))
    return _validated(name, env, demonstrations)


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise BilevelError(
            "Minari is not installed: its datasets cannot be read or written; "
            'pip install "minari[hdf5,hf]"'
        ) from error
    return minari


def _validated(source: str, env: str, demos: Demonstrations) -> Demonstrations:
    if _without_module(demos.env) != _without_module(env):
        raise BilevelError(
            f"{source} has demonstrations of {demos.env}, not {env}: give some of {env}"
        )
    _check_shapes(source, demos)
    demos = _cast(demos)
    by_step = (demos.observations, demos.actions, demos.rewards)
    by_episode = (demos.lengths, demos.last, demos.terminated)
    steps, episodes = ([len(part) for part in parts] for parts in (by_step, by_episode))
    total, shortest = sum(demos.lengths.tolist()), min(demos.lengths.tolist(), default=0)
    if {*steps} != {total} or len({*episodes}) > 1 or shortest < 1:
        raise BilevelError(
            f"{source} holds {steps} observations, actions and rewards, {episodes} lengths, last "
            f"and terminated, and lengths of at least {shortest} with the sum {total}: it is empty "
            "or inconsistent; record it again"
        )
    if not all(part.isfinite().all() for part in (*by_step, demos.last)):
        raise BilevelError(f"{source} holds NaN or infinity: record it again")
    return demos


def _check_shapes(source: str, demos: Demonstrations) -> None:
    parts = demos._asdict()
    del parts["env"]
    dims = {name: part.dim() for name, part in parts.items()}
    expected = dict.fromkeys(parts, 1) | {"observations": 2, "last": 2}
    fits = dims in (expected, expected | {"actions": 2})
    if not fits or demos.last.shape[1] != demos.observations.shape[1]:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise BilevelError(
            f"{source} holds {shapes}: E episodes of S steps in total have observations (S, n), "
            "actions (S,) or (S, m), rewards (S,), lengths (E,), last (E, n) and terminated (E,); "
            "store them in these shapes"
        )
    if bool((demos.lengths != demos.lengths.long()).any()):
        raise BilevelError(
            f"{source} holds lengths {demos.lengths.dtype} that are not whole: they count the "
            "steps of each episode; record it again"
        )


def _without_module(env: str) -> str:
    """``Name-v0`` of ``module:Name-v0``, the id once the module is imported."""
    return env.rpartition(":")[2]


def _cast(demos: Demonstrations) -> Demonstrations:
    """Casts to the types of a rollout."""
    kind = torch.float32 if demos.actions.is_floating_point() else torch.int64
    return demos._replace(
        observations=demos.observations.float(),
        actions=demos.actions.to(kind),
        rewards=demos.rewards.float(),
        lengths=demos.lengths.long(),
        last=demos.last.float(),
        terminated=demos.terminated.bool(),
    )
