"""Checkpoints: written atomically, and read with ``weights_only=True``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from bilevel import distributed
from bilevel.errors import BilevelError
from bilevel.experiment.files import atomic_write

LONGEST = 40
"""The number of letters of a setting in a message."""


class OtherRunError(BilevelError):
    """What was saved belongs to a run with other settings."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` atomically: ``path`` holds the old file or the new one, never a part of it.

    In a distributed job, where all processes have the same state, the first one writes it.

    Args:
        path: The file; its folder is created.
        state: Tensors and plain values.

    Raises:
        BilevelError: If it cannot be written (a full disk, a missing permission); an older file at
            ``path`` is kept.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "state.pt"
        >>> save(file, {"epoch": 3})
        >>> load(file)
        {'epoch': 3}
    """
    if not distributed.is_main():
        return
    with atomic_write(path) as part:
        torch.save(state, part)


def load(path: Path) -> dict[str, Any]:
    """Reads what :func:`save` wrote; only tensors and plain values are accepted.

    Args:
        path: The file.

    Returns:
        The state, on the CPU.

    Raises:
        BilevelError: If there is no such file, or it is truncated or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BilevelError(
            f"there is no checkpoint {path}: nothing to resume; leave out --resume, or name the "
            "folder of the run to resume"
        ) from error
    except Exception as error:  # of torch's unpickler: from a text file it may be any
        raise BilevelError(
            f"{path} is no readable checkpoint ({type(error).__name__}): it is truncated or of "
            "another kind; delete it to start again, or restore it from a copy"
        ) from error
    if not isinstance(state, dict):
        raise BilevelError(
            f"{path} holds a {type(state).__name__}, not a checkpoint: it was written by something "
            "else; name the file that the run wrote"
        )
    return state


def check_settings(
    path: Path, saved: Mapping[str, Any], given: Mapping[str, Any], derived: Collection[str] = ()
) -> None:
    """Checks that what was saved belongs to this run.

    Args:
        path: Its file, for the message.
        saved: The settings of the run that wrote it.
        given: The settings of this run.
        derived: The names of those that follow from others; they are told only if no other differs.

    Raises:
        OtherRunError: If one differs.

    Example:
        >>> check_settings(Path("run.pt"), {"seed": 0, "lr": 0.1}, {"seed": 1, "lr": 0.1})
        Traceback (most recent call last):
        ...
        bilevel.experiment.checkpoint.OtherRunError: run.pt is a run with seed = 0, this one has
        seed = 1: a run is resumed as it was begun; give the same settings, or another --out
    """
    changed = [name for name in {**given, **saved} if saved.get(name) != given.get(name)]
    changed = [name for name in changed if name not in derived] or changed
    if changed:
        theirs, ours = (
            ", ".join(f"{name} = {_short(one.get(name), other.get(name))}" for name in changed)
            for one, other in ((saved, given), (given, saved))
        )
        raise OtherRunError(
            f"{path} is a run with {theirs}, this one has {ours}: a run is resumed as it was "
            "begun; give the same settings, or another --out"
        )


def check_iterations(path: Path, done: int, requested: int) -> None:
    """Checks that a run that was saved has not gone on for longer than is requested.

    Args:
        path: Its file, for the message.
        done: The iterations that it has run.
        requested: The iterations of this run.

    Raises:
        BilevelError: If it has run more.
    """
    if done > requested:
        raise BilevelError(
            f"{path} has run {done} iterations already, and {requested} are requested: give "
            f"--iterations {done} or more, or another --out"
        )


def _short(value: object, other: object) -> str:
    """A value as text; of one that is too long for a line, where it differs from the other."""
    text = str(value)
    if len(text) <= LONGEST:
        return text
    pairs = zip(text, str(other), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    begin = max(text.rfind(" ", 0, same) + 1, same - LONGEST // 2)  # a path has no blanks
    end = begin + LONGEST
    return ("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else "")


def random_state() -> dict[str, Any]:
    """The state of torch's random number generators.

    Returns:
        The CPU's, and that of this process's GPU if it uses one.
    """
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": gpu}


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the state of the random number generators.

    Args:
        state: What :func:`random_state` returned.
    """
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
