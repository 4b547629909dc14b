"""Loading image sets by the name of the dataset."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from bilevel import distributed
from bilevel.arguments import count, one_of
from bilevel.errors import BilevelError
from bilevel.fingerprint import fingerprint
from bilevel.robustness.data.cache import Bytes
from bilevel.robustness.data.folder import find_trees
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.data.npz import read_npz
from bilevel.robustness.data.splits import Splits, hold_out_by_content, hold_out_test, split

Dataset = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "folder", "npz"]
"""The names that :func:`load_images` takes."""

# torchvision's class of a dataset, and the folder below data_dir where it looks for the files.
_TORCHVISION = {
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}


def load_images(
    dataset: Dataset,
    data_dir: str | os.PathLike[str],
    *,
    seed: int,
    validation: float = 0.1,
    train_size: int | None = None,
    image_size: int | None = None,
    download: bool = True,
) -> Splits:
    """Loads a dataset into memory, on the CPU.

    Every split is stratified: it has the class proportions of the whole. ``digits``, and a folder
    without ``train/`` and ``test/``, have no test set of their own: a fifth of the images becomes
    one, the same for every ``seed``, so that results of several seeds are on the same images.

    Args:
        dataset: ``digits`` (part of scikit-learn, no files needed), ``fashion-mnist``, ``cifar10``,
            ``cifar100`` (through torchvision), ``folder``: RGB images in
            ``data_dir/{train,val,test}/CLASS/``, where ``val`` may be missing, or in
            ``data_dir/CLASS/``, decoded once into a cache, or ``npz``: one file of arrays in the
            layout of MedMNIST (Yang et al., 2023), ``train_images``, ``train_labels``,
            ``test_images`` and ``test_labels``; optionally ``val_images`` and ``val_labels``, and
            ``classes``, the names. Images are uint8 of shape ``(N, H, W)``, ``(N, H, W, C)`` or
            ``(N, C, H, W)`` with C = 1 or 3, labels integers from 0 of shape ``(N,)`` or
            ``(N, 1)``.
        data_dir: Folder of the files; for ``npz`` the file.
        seed: Seed of the validation split and of the images that ``train_size`` keeps, 0 or more.
        validation: Share of the training images held out, in [0, 1); ignored for a folder or file
            that has validation images.
        train_size: Number of training images to keep after that; None keeps all.
        image_size: Height and width to which the images of a folder are scaled and cropped, turned
            upright where the camera says how; None for images that have one size.
        download: Whether missing files may be downloaded.

    Returns:
        The training, validation and test sets, in the order of their source; the test images of a
        folder or an npz file in a fixed random order.

    Raises:
        BilevelError: The images are not available, or an argument is out of its range.

    Example:
        >>> splits = load_images("digits", ".", seed=0)
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (1294, 144, 359)
    """
    one_of("dataset", dataset, get_args(Dataset))
    count("seed", seed, least=0)
    if not 0 <= validation < 1:
        raise BilevelError(
            f"validation is {validation}: it is a share of the training images; give it in [0, 1)"
        )
    if image_size is not None and dataset != "folder":
        raise BilevelError(
            f"image_size is {image_size} and the images are those of {dataset}: only the images of "
            "a folder are brought to a size; leave it out"
        )
    train, test, held_out = _read(dataset, Path(data_dir).expanduser(), image_size, download)
    if held_out is None:
        held_out, train = split(train, round(validation * len(train)), seed)
    if train_size is not None:
        if not 1 <= train_size <= len(train):
            raise BilevelError(
                f"train_size is {train_size}: {len(train)} training images remain beside the "
                f"validation set; give 1 to {len(train)}"
            )
        train, _ = split(train, train_size, seed)
    return Splits(train, held_out, test)


def load_together(dataset: Dataset, data_dir: str | os.PathLike[str], **options: Any) -> Splits:
    """Loads a dataset in every process, and checks that all have the same images. Collective.

    One process goes first: it downloads, and fills the caches.

    Args:
        dataset: See :func:`load_images`.
        data_dir: Likewise.
        **options: Likewise.

    Returns:
        Likewise.

    Raises:
        BilevelError: Likewise, or if the images of the processes differ.
    """
    with distributed.main_first():
        data = load_images(dataset, data_dir, **options)
    sums = [fingerprint(part.images, part.labels) for part in data]
    distributed.check_consistent({"images": sums})
    return data


def _read(
    dataset: Dataset, root: Path, side: int | None, download: bool
) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """Training, test and perhaps validation images of any dataset."""
    if dataset == "digits":
        return *_digits(), None
    if dataset not in ("folder", "npz"):
        train, test = (_torchvision(dataset, root, part, download) for part in (True, False))
        return train, test, None
    train, test, held_out = _folder(root, side) if dataset == "folder" else _npz(root)
    # They are often sorted by class, and adversarial interpolation pairs images across classes.
    order = np.random.default_rng(0).permutation(len(test))  # depends on their number alone
    return train, test.subset(torch.from_numpy(order)), held_out


def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1797 digits, 8×8: their grey levels 0…16 become bytes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return hold_out_test(ImageSet(images, labels, tuple(str(name) for name in range(10))))


def _folder(root: Path, side: int | None) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """Training, test and perhaps validation images of an image folder."""
    if side is not None:
        count("image_size", side)
    sets, sums = {}, {}
    for part, tree in find_trees(root).items():
        images, sums[part] = tree.read(side)
        labels = torch.from_numpy(tree.labels)
        sets[part] = ImageSet(torch.from_numpy(images), labels, tree.classes)
    if "all" in sets:
        return *hold_out_by_content(sets["all"], sums["all"]), None
    _warn_of_copies(root, sums["train"], sums["test"])
    _check_sizes({f"{root}/{part}": images for part, images in sets.items()})
    return sets["train"], sets["test"], sets.get("val")


def _warn_of_copies(root: Path, train: Bytes, test: Bytes) -> None:
    """Warns if the classifier would be tested on what it has been trained on."""
    seen = {row.tobytes() for row in train}
    copies = sum(row.tobytes() in seen for row in test)
    if copies:
        warnings.warn(
            f"{copies} of {len(test)} images in {root / 'test'} are in {root / 'train'} too: the "
            "accuracy on them says nothing; remove them from one of the two",
            stacklevel=2,
        )


def _npz(path: Path) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """Training, test and perhaps validation images of a file of arrays."""
    sets = read_npz(path)
    _check_sizes({f"{part}_images of {path}": images for part, images in sets.items()})
    return sets["train"], sets["test"], sets.get("val")


def _check_sizes(sets: Mapping[str, ImageSet]) -> None:
    """Raises if the images of two sets differ in size; the keys say where the images are."""
    sizes = {  # width, height, channels
        name: "x".join(map(str, images.images.shape[:0:-1])) for name, images in sets.items()
    }
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            raise BilevelError(
                f"images differ in size: those in {first} are {size} and those in {name} are "
                f"{other} (width x height x channels); bring all images to one "
                "size, as image_size (--image-size) does for a folder"
            )


def _torchvision(name: str, root: Path, train: bool, download: bool) -> ImageSet:
    """The training or the test images of one of torchvision's datasets."""
    class_name, folder = _TORCHVISION[name]
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise BilevelError(
            f"{name} is read by torchvision, which cannot be imported ({_one_line(error)}); "
            "install the torchvision that belongs to the installed torch, or use digits or folder"
        ) from error
    try:
        source: Any = getattr(torchvision.datasets, class_name)(root, train, download=download)
    except Exception as error:  # network, archive and files raise many kinds
        raise BilevelError(
            f"{name} is not available in {root / folder} ({_one_line(error)}); put its unpacked "
            f"files there, {'' if download else 'allow the download, '}or use digits, which needs "
            "none"
        ) from error
    pixels = torch.as_tensor(source.data)
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.as_tensor(source.targets), tuple(source.classes))


def _one_line(error: Exception) -> str:
    """An error's message on one line; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
