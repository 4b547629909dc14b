"""What an expert did: collected, kept in a file, thinned out."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.files import replacing
from bilevel.imitation.policies import Policy
from bilevel.imitation.rollouts import Sampler, make_envs


class Demonstrations(NamedTuple):
    """Whole episodes of an expert, one after the other.

    Attributes:
        env: The environment's name.
        observations: ``(S, n)``.
        actions: ``(S,)`` discrete, ``(S, m)`` continuous.
        lengths: Of the episodes, ``(E,)``; they add up to S.
        returns: Of the episodes, ``(E,)``.
    """

    env: str
    observations: Tensor
    actions: Tensor
    lengths: Tensor
    returns: Tensor

    def thinned(self, every: int, offset: int = 0) -> Demonstrations:
        """Every k-th pair of each episode, as Ho & Ermon (2016) subsample theirs.

        Args:
            every: k, 20 in their work; 1 keeps all.
            offset: Of the first pair that is kept, less than k.

        Returns:
            Fewer pairs of the same episodes, whose returns stay those of the whole.

        Raises:
            BilevelError: If nothing would be left of an episode.
        """
        if every < 1 or not 0 <= offset < every or int(self.lengths.min()) <= offset:
            raise BilevelError(
                f"every {every}th pair from {offset} leaves nothing of an episode of "
                f"{int(self.lengths.min())} steps: give every ≥ 1 and a smaller offset"
            )
        place = torch.cat([torch.arange(int(length)) for length in self.lengths])
        kept = place % every == offset
        lengths = (self.lengths - offset + every - 1) // every
        return self._replace(
            observations=self.observations[kept], actions=self.actions[kept], lengths=lengths
        )

    def first(self, episodes: int) -> Demonstrations:
        """The first episodes only.

        Args:
            episodes: How many.

        Returns:
            Fewer demonstrations.

        Raises:
            BilevelError: If there are not so many.
        """
        if not 1 <= episodes <= len(self.lengths):
            raise BilevelError(
                f"{episodes} demonstrations are asked for and {len(self.lengths)} are there: "
                "record more, or ask for fewer"
            )
        steps = int(self.lengths[:episodes].sum())
        return Demonstrations(
            self.env,
            self.observations[:steps],
            self.actions[:steps],
            self.lengths[:episodes],
            self.returns[:episodes],
        )


def demonstrate(env: str, expert: Policy, episodes: int, *, seed: int = 0) -> Demonstrations:
    """Lets an expert play whole episodes.

    Args:
        env: The environment's name.
        expert: Who plays.
        episodes: How many.
        seed: Of the environments.

    Returns:
        The first ``episodes`` episodes of as many environments, so that short ones are no likelier
        to be recorded than long ones.

    Raises:
        BilevelError: If there is no such environment, or no episode is asked for.
    """
    if episodes < 1:
        raise BilevelError(f"episodes is {episodes}: there is nothing to imitate; give 1 or more")
    sampler = Sampler(make_envs(env, episodes), expert, seed=seed)
    parts = [sampler.collect(1)]
    while not torch.cat([part.ended for part in parts]).any(0).all():
        parts.append(sampler.collect(50))
    observations, actions, rewards, ended = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("observations", "actions", "rewards", "ended")
    )
    lengths = ended.int().argmax(0) + 1
    rows = [(slice(0, int(length)), number) for number, length in enumerate(lengths)]
    return Demonstrations(
        env,
        torch.cat([observations[row] for row in rows]),
        torch.cat([actions[row] for row in rows]),
        lengths,
        torch.stack([rewards[row].sum() for row in rows]),
    )


def save_demonstrations(path: Path, demonstrations: Demonstrations) -> None:
    """Writes a ``.npz``.

    Args:
        path: The file.
        demonstrations: What to keep.

    Raises:
        BilevelError: If it cannot be written.
    """
    arrays: dict[str, Any] = demonstrations._asdict()  # the name becomes an array too
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_demonstrations(path: Path, env: str) -> Demonstrations:
    """Reads what :func:`save_demonstrations` wrote.

    Args:
        path: The file.
        env: The environment that they must be of.

    Returns:
        The demonstrations.

    Raises:
        BilevelError: If there are none, or they are of another environment, empty, of shapes that
            do not fit, or not finite.

    Example:
        >>> import tempfile
        >>> from bilevel.imitation import MountainCarExpert
        >>> shown = demonstrate("MountainCar-v0", MountainCarExpert(), 2)
        >>> file = Path(tempfile.mkdtemp()) / "expert.npz"
        >>> save_demonstrations(file, shown)
        >>> load_demonstrations(file, "MountainCar-v0").returns.tolist() == shown.returns.tolist()
        True
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            name, *parts = (file[field] for field in Demonstrations._fields)
    except FileNotFoundError as error:
        raise BilevelError(
            f"there are no demonstrations {path}: nothing to imitate; record some first"
        ) from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BilevelError(
            f"{path} holds no demonstrations ({type(error).__name__}): it is truncated or of "
            "another kind; name a .npz with the arrays " + ", ".join(Demonstrations._fields)
        ) from error
    found = Demonstrations(str(name), *map(torch.as_tensor, parts))
    if found.env != env:
        raise BilevelError(
            f"{path} shows {found.env}, not {env}: an expert of one task is none of another; name "
            f"demonstrations of {env}"
        )
    steps = int(found.lengths.sum())
    if not steps or {len(found.observations), len(found.actions)} != {steps}:
        raise BilevelError(
            f"{path} tells of {steps} steps and holds {len(found.observations)} states and "
            f"{len(found.actions)} actions: it is empty or does not fit together; record it again"
        )
    if not found.observations.isfinite().all():
        raise BilevelError(f"{path} holds NaN or infinity: record it again")
    return found
