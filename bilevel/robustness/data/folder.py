"""A folder of images, one subfolder per class, decoded once into a cache.

It reads what ``torchvision.datasets.ImageFolder`` reads, in the same order and with the same
labels, but needs Pillow alone, leaves out what systems hide in folders (names that begin with a
dot, ``__MACOSX``), reads a folder once that links lead to again, and its errors name the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bilevel.errors import BilevelError
from bilevel.robustness.data import cache
from bilevel.robustness.data.decoding import decode

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Files that count as images, as for ``ImageFolder``."""

_CACHE_FORMAT = "bilevel images 4"
_PARTS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "val")
_PART_LIKE = re.compile(r"(train|test)(ing)?|val(id(ation)?)?", re.IGNORECASE)


@dataclass(frozen=True)
class ImageTree:
    """The images of a folder, listed but not decoded.

    Args:
        root: The folder that holds the class folders.
        classes: The names of the training images' class folders, sorted.
        files: Paths of the images, relative to ``root``, sorted by class.
        labels: The class of each file, ``(N,)`` int64.
        fingerprint: A digest of the files' names, sizes and modification times.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    fingerprint: str

    def read(self, side: int | None = None) -> cache.Decoded:
        """The images, from the cache, or else decoded and then cached.

        The cache is the file ``.bilevel-cache.npz`` in ``root``, or ``.bilevel-cache-64.npz`` for
        ``side=64``, or, if that is not writable, a file in the user's cache folder. It holds the
        fingerprint of the files that it was made from, and is ignored if theirs differs.

        Args:
            side: Their height and width: images are scaled and cropped to it, turned upright where
                the camera says how; None for images that have one size.

        Returns:
            RGB, ``(N, 3, H, W)``, and the files' checksums.

        Raises:
            BilevelError: An image cannot be decoded, has several pages or frames or more than 8
                bits a channel, or is transparent, or the images differ in size.
        """
        places = cache.cache_files(self.root, side)
        for place in places:
            decoded = cache.load(place, self.fingerprint)
            if decoded is not None:
                return decoded
        decoded = decode([self.root / file for file in self.files], side)
        if not any(cache.save(place, self.fingerprint, decoded) for place in places):
            warnings.warn(
                f"no cache of the images can be written ({' or '.join(map(str, places))}): they "
                "will be decoded again in the next run; make one of the folders writable",
                stacklevel=2,
            )
        return decoded


def find_trees(root: Path) -> dict[str, ImageTree]:
    """Finds the images below a folder, in ``root/{train,val,test}/CLASS/`` or ``root/CLASS/``.

    Args:
        root: The folder that the user gave. Validation images may be missing; their folder may
            also be called ``valid`` or ``validation``.

    Returns:
        The images of ``train``, ``test`` and perhaps ``val``, with the classes of ``train``, some
        of which the others may lack; or ``all`` of them if the folder is not split.

    Raises:
        BilevelError: A folder is missing or empty, ``train`` lacks a class of another part, or it
            is not clear which folders are the parts.
    """
    found = [(part, root / name) for name, part in _PARTS.items() if (root / name).is_dir()]
    parts = dict(found)
    if len(parts) < len(found):
        names = " and ".join(f"{place.name}/" for part, place in found if part == "val")
        raise BilevelError(
            f"folder {root} holds {names}: both would be the validation images; keep one of them"
        )
    if not {"train", "test"} & set(parts):
        return {"all": _list_unsplit(root)}
    _check_parts(root, parts)
    train = list_images(parts.pop("train"))
    return {"train": train} | {
        part: list_images(place, train.classes) for part, place in parts.items()
    }


def _list_unsplit(root: Path) -> ImageTree:
    """The images of a folder without parts; raises if its classes look like parts."""
    tree = list_images(root)
    if all(_PART_LIKE.fullmatch(name) for name in tree.classes):
        raise BilevelError(
            f"folder {root} holds {'/, '.join(tree.classes)}/: they would be its classes; name "
            "parts train/, test/ and val/, or the class folders after their classes"
        )
    return tree


def _check_parts(root: Path, parts: dict[str, Path]) -> None:
    """Raises if training or test images are missing."""
    for part, other in (("train", "test"), ("test", "train")):
        if other not in parts:
            here = " and ".join(f"{place.name}/" for place in parts.values())
            rename = f"rename {parts['val'].name}/, " if "val" in parts else ""
            raise BilevelError(
                f"folder {root} holds {here} but no {other}/: a classifier is trained on the one "
                f"and attacked on the other; add {other}/, {rename}or give {parts[part]}, and what "
                "is missing is held out of it"
            )


def list_images(root: Path, classes: tuple[str, ...] = ()) -> ImageTree:
    """Lists the images below a folder, one subfolder per class.

    Args:
        root: The folder that holds the class folders.
        classes: The classes of the training images, some of which may have no image here; unless
            given, the class folders are the classes.

    Returns:
        Its images, in the order of ``ImageFolder``.

    Raises:
        BilevelError: The folder is missing or without images, or holds another class than the given
            ones; or, if none are given, fewer than two classes, or an empty one.
    """
    folders = _class_folders(root)
    names = tuple(sorted(folders))
    if not classes and len(names) < 2:
        found = f"one class folder ({names[0]})" if names else "no class folders"
        raise BilevelError(
            f"folder {root} holds {found}: a classifier needs two classes or more; "
            f"put the images of each class in {root}/CLASS/"
        )
    if classes and (unknown := [name for name in names if name not in classes]):
        raise BilevelError(
            f"class {unknown[0]} is in {root} but not among the training images: the classifier "
            "would never answer it; add training images of it, or remove it here"
        )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes or names):
        members = [file for folder in folders.get(name, ()) for file in _image_files(root, folder)]
        if not members and not classes:
            raise BilevelError(
                f"class folder {root / name} holds no image ({', '.join(EXTENSIONS)}); "
                "put images in it or remove it"
            )
        files += members
        labels += [label] * len(members)
    if not files:
        raise BilevelError(
            f"folder {root} holds no image of a class ({', '.join(EXTENSIONS)}); "
            f"put images in {root}/CLASS/"
        )
    rows = np.array(labels, np.int64)
    return ImageTree(root, classes or names, tuple(files), rows, _fingerprint(root, files))


def _class_folders(root: Path) -> dict[str, list[str]]:
    """The folders of each class. Some systems write an umlaut as a letter and two dots."""
    if not root.is_dir():
        raise BilevelError(
            f"there is no folder {root}: images are read from its class folders, {root}/CLASS/; "
            "give the folder that holds them"
        )
    folders: dict[str, list[str]] = {}
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir() and not _is_hidden(entry.name):
            # A name that is not UTF-8, as old archives have, could be neither drawn nor printed.
            name = os.fsencode(entry.name).decode(errors="backslashreplace")
            folders.setdefault(unicodedata.normalize("NFC", name), []).append(entry.name)
    return folders


def _image_files(root: Path, name: str) -> list[str]:
    """The images anywhere in a class folder, relative to ``root``, in ``ImageFolder``'s order."""
    files: list[str] = []
    others: list[str] = []
    for place, names in sorted(_folders_below(root / name)):
        inside = os.path.relpath(place, root)
        for file in sorted(names):
            known = file.lower().endswith(EXTENSIONS)
            (files if known else others).append(os.path.join(inside, file))
    if files and others:
        warnings.warn(
            f"{len(others)} of {len(files) + len(others)} files in {root / name} are no images of "
            f"a known type, such as {others[0]}: they are not read; convert them to PNG, or remove "
            "them",
            stacklevel=2,
        )
    return files


def _folders_below(top: Path) -> Iterator[tuple[str, list[str]]]:
    """The folder and those below it, each once, with the names of their files."""
    root = Path(os.path.realpath(top.parent))  # a link back up leads to the other classes
    seen = {str(folder) for folder in (root, *root.parents)}
    for place, inner, names in os.walk(top, followlinks=True):
        here = os.path.realpath(place)
        inner[:] = [] if here in seen else [name for name in inner if not _is_hidden(name)]
        if here not in seen:
            yield place, [name for name in names if not _is_hidden(name)]
        seen.add(here)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _fingerprint(root: Path, files: list[str]) -> str:
    """A digest of the files' names, sizes and modification times."""
    digest = hashlib.sha256(_CACHE_FORMAT.encode())
    for name in files:
        file = root / name
        try:
            status = file.stat()
        except OSError as error:
            kind = "is a link to a missing file" if file.is_symlink() else "cannot be read"
            raise BilevelError(
                f"image {file} {kind} ({error.strerror}): restore it, or remove it"
            ) from error
        entry = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"
        digest.update(entry.encode(errors="surrogatepass"))  # names need not be UTF-8
    return digest.hexdigest()
