"""A cache of decoded images in one file, valid as long as the source files do not change."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bilevel.errors import BilevelError
from bilevel.experiment.files import atomic_write

Bytes = npt.NDArray[np.uint8]


def user_cache(root: Path) -> list[Path]:
    """The cache file of a folder that is not writable.

    Args:
        root: The folder.

    Returns:
        A file in the user's cache folder; empty for a user without a home.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bilevel"
    except RuntimeError:
        return []
    name = str(root.resolve()).encode(errors="surrogatepass")  # it need not be UTF-8
    return [folder / (hashlib.sha256(name).hexdigest()[:32] + ".npz")]


def load(path: Path, fingerprint: str) -> Bytes | None:
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
                images: Bytes = file["images"]
                return images
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    return None


def save(path: Path, fingerprint: str, images: Bytes) -> bool:
    """Writes a cache file atomically.

    Args:
        path: The file.
        fingerprint: The fingerprint of the source files.
        images: The decoded images.

    Returns:
        Whether it could be written.
    """
    try:
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint), images=images)
    except BilevelError:
        return False
    return True
