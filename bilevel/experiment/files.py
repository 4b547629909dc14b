"""Atomic writes, and errors of the file system as one line."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from bilevel.errors import BilevelError

_CLAIMED: set[Path] = set()
"""The folders that this process has claimed."""


def make_folder(path: Path) -> Path:
    """Creates a folder and its parents, if they are missing.

    Args:
        path: The folder.

    Returns:
        The same path.

    Raises:
        BilevelError: If it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BilevelError(
            f"cannot make the folder {path} ({error.strerror}): write to another folder"
        ) from error
    return path


def claim(folder: Path) -> None:
    """Keeps a folder for this process, until it ends in whatever way.

    Where the system has no file locks, only its results are checked.

    Args:
        folder: The folder; it is created.

    Raises:
        BilevelError: If another process has claimed it, or it holds another application's results.
    """
    _check_results(folder / "results.json")
    if folder.absolute() in _CLAIMED:
        return
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with writing(folder):  # open, and so locked, until the process ends
        file = os.open(make_folder(folder) / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _CLAIMED.add(folder.absolute())
    except (BlockingIOError, PermissionError) as error:
        raise BilevelError(
            f"another run writes to {folder}: their results would be mixed up; give another --out, "
            "or wait until it has ended"
        ) from error
    except OSError:  # a file system without locks
        return


def remove(*paths: Path) -> None:
    """Removes files, as far as they exist.

    Args:
        *paths: The files.

    Raises:
        BilevelError: If one cannot be removed.
    """
    for path in paths:
        with writing(path):
            path.unlink(missing_ok=True)


def _check_results(path: Path) -> None:
    """Raises if results that are there were written by another application."""
    own = application = Path(sys.argv[0]).name
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):  # other files
        command = json.loads(path.read_text(encoding="utf-8"))["environment"]["command"]
        application = Path(shlex.split(command)[1]).name
    if application != own:
        raise BilevelError(
            f"{path.parent} holds the results of {application}: they would be replaced; give "
            "another --out"
        )


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary file, which replaces ``path`` at the end of the block.

    So ``path`` holds the old file or the new one, never a part of it.

    Args:
        path: The file; its folder is created.

    Yields:
        The temporary file, to write to.

    Raises:
        BilevelError: If it cannot be written (a full disk, a missing permission); an older file at
            ``path`` is kept.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(file) as part:
        ...     _ = part.write_text("whole", encoding="utf-8")
        >>> file.read_text(encoding="utf-8")
        'whole'
    """
    folder = make_folder(path.parent).absolute()
    # Several processes may fill one cache. In a claimed folder the part that a killed run has left
    # is replaced.
    owner = "" if _CLAIMED & {folder, *folder.parents} else f".{os.getpid()}"
    part = path.with_name(f".{path.name}{owner}.part")
    try:
        with writing(path):
            yield part
            with part.open("r+b") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block, failures to write are raised as :class:`~bilevel.BilevelError`.

    Args:
        path: The file or folder, for the message.

    Yields:
        Nothing.

    Raises:
        BilevelError: If it cannot be written.
        RuntimeError: Any other error of the block.
    """
    try:
        yield
    except OSError as error:
        raise BilevelError(_not_written(path, str(error).partition("\n")[0])) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("inline_container", "iostream error")):
            raise  # only torch's writer raises a RuntimeError if the disk is full
        reason = "only a part of it: is the disk full?"  # torch tells positions in the file
        raise BilevelError(_not_written(path, reason)) from error


def _not_written(path: Path, reason: str) -> str:
    kept = "; the older file there is kept" if path.is_file() else ""
    return f"cannot write {path} ({reason}){kept}: free some space, or write to another folder"
