"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bilevel.errors import BilevelError


def make_folder(path: Path) -> Path:
    """Makes a folder and those above it, where they are missing.

    Args:
        path: The folder.

    Returns:
        The same path.

    Raises:
        BilevelError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BilevelError(
            f"cannot make the folder {path} ({error.strerror}): write to another folder"
        ) from error
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Within the block a file is written beside ``path``; at its end the file takes that name.

    So ``path`` holds the old file or the new one, never a part of it.

    Args:
        path: The file; its folder is made.

    Yields:
        The name to write to.

    Raises:
        BilevelError: If it cannot be written (a full disk, a missing permission); an older file at
            ``path`` is untouched.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(file) as part:
        ...     _ = part.write_text("whole")
        >>> file.read_text()
        'whole'
    """
    part = make_folder(path.parent) / f".{path.name}.part"
    try:
        with writing(path):
            yield part
            with part.open("r+b") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block a failure to write is told as one.

    Args:
        path: What is written.

    Yields:
        Nothing.

    Raises:
        BilevelError: If it cannot be written.
        RuntimeError: Whatever else goes wrong in the block.
    """
    try:
        yield
    except OSError as error:
        raise BilevelError(_not_written(path, error)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise  # only torch's writer makes a RuntimeError of a full disk
        raise BilevelError(_not_written(path, error)) from error


def _not_written(path: Path, error: Exception) -> str:
    kept = "; the older file there is kept" if path.is_file() else ""
    return (
        f"cannot write {path} ({str(error).splitlines()[0]}){kept}: free some space, or write "
        "to another folder"
    )
