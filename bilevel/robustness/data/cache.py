"""A cache of decoded images in one file, valid as long as the source files do not change."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bilevel.errors import BilevelError
from bilevel.experiment.files import atomic_write

Bytes = npt.NDArray[np.uint8]


class Decoded(NamedTuple):
    """Decoded images, with checksums by which their files are known again.

    Args:
        images: RGB, ``(N, 3, H, W)``.
        sums: The SHA-256 of each file, ``(N, 32)``.
    """

    images: Bytes
    sums: Bytes


def cache_files(root: Path, side: int | None) -> list[Path]:
    """Where the decoded images of a folder may be kept.

    Args:
        root: The folder.
        side: The height and width to which they are brought; None for those of one size.

    Returns:
        A file in the folder, and, for a user with a home, one in the user's cache folder.
    """
    end = ".npz" if side is None else f"-{side}.npz"
    own = root / f".bilevel-cache{end}"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bilevel"
    except RuntimeError:  # there is no home
        return [own]
    name = str(root.resolve()).encode(errors="surrogatepass")  # it need not be UTF-8
    return [own, folder / (hashlib.sha256(name).hexdigest()[:32] + end)]


def load(path: Path, fingerprint: str) -> Decoded | None:
    """Reads a cache file.

    Args:
        path: The file.
        fingerprint: The current fingerprint of the source files.

    Returns:
        The images; None if the cache is absent, stale or damaged.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file["fingerprint"]) == fingerprint:
                return Decoded(file["images"], file["sums"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    return None


def save(path: Path, fingerprint: str, decoded: Decoded) -> bool:
    """Writes a cache file atomically.

    Args:
        path: The file.
        fingerprint: The fingerprint of the source files.
        decoded: The images.

    Returns:
        Whether it could be written.
    """
    try:
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint), **decoded._asdict())
    except BilevelError:
        return False
    return True
