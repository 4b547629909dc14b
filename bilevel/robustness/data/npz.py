"""Images in one ``.npz`` file of arrays, in the layout of MedMNIST; numpy alone reads it.

np.savez("photos.npz", train_images=…, train_labels=…, test_images=…, test_labels=…)
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.robustness.data.images import ImageSet

_PARTS = ("train", "val", "test")
_CHANNELS = (1, 3)

Array = npt.NDArray[Any]


def read_npz(path: Path) -> dict[str, ImageSet]:
    """Reads the images of a file in the layout of :func:`~bilevel.robustness.load_images`.

    Args:
        path: The file.

    Returns:
        The sets ``train``, ``test`` and, if the file has it, ``val``. The classes are those that
        the file names, or else ``"0"``, ``"1"`` and so on.

    Raises:
        BilevelError: The file cannot be read, or an array is missing or has a wrong type or shape.
    """
    arrays = _arrays(path)
    images, labels = {}, {}
    for part in _PARTS:
        if f"{part}_images" in arrays:
            images[part] = _images(f"{part}_images of {path}", arrays[f"{part}_images"])
            name = f"{part}_labels of {path}"
            labels[part] = _labels(name, arrays[f"{part}_labels"], len(images[part]))
    classes = _classes(path, arrays.get("classes"), labels["train"])
    for part, found in labels.items():
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= len(classes):
            raise BilevelError(
                f"{part}_labels of {path} run from {low} to {high}, but there are {len(classes)} "
                f"classes, 0 to {len(classes) - 1}: number the classes of the training images from "
                "0 without gaps, or name all classes in an array classes"
            )
    return {part: ImageSet(images[part], labels[part], classes) for part in images}


def _arrays(path: Path) -> Mapping[str, Array]:
    """The arrays of the layout; raises if one is missing."""
    if not path.is_file():
        raise BilevelError(
            f"there is no file {path}: npz images are one file of arrays; give it as the data_dir"
        )
    if not zipfile.is_zipfile(path):
        raise BilevelError(
            f"{path} is no .npz file, or is truncated: images are read from a file that "
            "numpy.savez writes; give such a file"
        )
    known = {f"{part}_{kind}" for part in _PARTS for kind in ("images", "labels")} | {"classes"}
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name in names if name in known}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise BilevelError(
            f"{path} cannot be read ({' '.join(str(error).split())}): it may be damaged, or hold "
            "Python objects; write arrays of numbers and strings with numpy.savez"
        ) from error
    parts = [part for part in _PARTS if part != "val" or {"val_images", "val_labels"} & set(names)]
    for name in (f"{part}_{kind}" for part in parts for kind in ("images", "labels")):
        if name not in arrays:
            raise BilevelError(
                f"{path} has no array {name}: it holds {', '.join(sorted(names)) or 'nothing'}; "
                f"add {name} to it"
            )
    return arrays


def _images(name: str, array: Array) -> Tensor:
    """Images as ``(N, C, H, W)``."""
    images = array[..., None] if array.ndim == 3 else array
    if array.ndim == 4 and array.shape[1] in _CHANNELS and array.shape[3] in _CHANNELS:
        raise BilevelError(
            f"{name} are of shape {array.shape}, which is (N, H, W, C) as well as (N, C, H, W): "
            "channels cannot be told from pixels; give grey images as (N, H, W), or colour ones of "
            "a height and width other than 1 and 3"
        )
    if images.ndim == 4 and images.shape[3] in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    fits = images.ndim == 4 and images.shape[1] in _CHANNELS and images.size > 0
    if not fits or images.dtype != np.uint8:
        raise BilevelError(
            f"{name} are {array.dtype} of shape {array.shape}: images are bytes from 0 to 255; "
            "give uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3"
        )
    return torch.from_numpy(np.ascontiguousarray(images))


def _labels(name: str, array: Array, count: int) -> Tensor:
    """The labels of ``count`` images as ``(N,)`` int64."""
    if array.ndim == 2 and array.shape[1] > 1:
        raise BilevelError(
            f"{name} have {array.shape[1]} columns, as multi-label or one-hot labels have: an "
            "image has one class here; give its number alone"
        )
    if array.dtype.kind not in "iu" or array.shape not in ((count,), (count, 1)):
        raise BilevelError(
            f"{name} are {array.dtype} of shape {array.shape}: each of the {count} images has one "
            f"class; give integers of shape ({count},)"
        )
    return torch.from_numpy(array.reshape(count).astype(np.int64))


def _classes(path: Path, given: Array | None, train_labels: Tensor) -> tuple[str, ...]:
    """The names of the classes: the given ones, or a number for each training label."""
    names = np.arange(len(train_labels.unique())).astype(str) if given is None else given
    if names.ndim != 1 or names.dtype.kind != "U":
        raise BilevelError(
            f"classes of {path} are {names.dtype} of shape {names.shape}: they are the names of "
            "the classes; give strings of shape (number of classes,)"
        )
    if len(names) < 2:
        raise BilevelError(
            f"{path} holds {len(names)} class: a classifier needs two classes or more; add images "
            "of another class"
        )
    return tuple(names.tolist())
