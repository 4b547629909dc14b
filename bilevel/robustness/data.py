"""Where the images of the robustness kit come from, and how they are split.

Three sets: ``train`` to fit the classifier, ``validation`` (held out of the training images) to
choose a checkpoint or a hyperparameter, ``test`` to report one figure at the end. Choosing on the
test set, as much work on adversarial training does, reports the luckiest checkpoint.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.robustness.folder import find_trees

Dataset = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "folder"]
"""The names that :func:`load_images` takes."""

_TEST_SHARE = 0.2  # of the images that come without a test set

# torchvision's class of a dataset, and the folder below data_dir where it looks for the files.
_TORCHVISION = {
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in memory.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: The class of each image, ``(N,)`` int64, an index of ``classes``.
        classes: The names of the classes.

    Raises:
        BilevelError: A tensor has another shape or type.

    Example:
        >>> images = ImageSet(torch.zeros(4, 3, 8, 8).byte(), torch.arange(4) % 2, ("cat", "dog"))
        >>> len(images), images.subset([0, 2]).labels
        (4, tensor([0, 0]))
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks what can be checked without reading the device."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise BilevelError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}: "
                "an ImageSet holds bytes; give uint8 of shape (N, C, H, W)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise BilevelError(
                f"labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}: "
                f"each image has one class; give int64 of shape ({len(self.images)},)"
            )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on ``device``.

        Args:
            device: Where the images and the labels shall lie.

        Returns:
            An image set there. Tensors that lie there already are shared, not copied.
        """
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at ``indices``, in that order.

        Args:
            indices: Positions in this set.

        Returns:
            A copy of these images, with the names of all classes.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return ImageSet(self.images[rows], self.labels[rows], self.classes)


class Splits(NamedTuple):
    """The three sets of an experiment.

    Attributes:
        train: Images to train on.
        validation: Images held out of the training images, to choose with.
        test: Images to report on, used for no choice.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def load_images(
    dataset: Dataset,
    data_dir: str | os.PathLike[str],
    *,
    seed: int,
    validation: float = 0.1,
    train_size: int | None = None,
    download: bool = True,
) -> Splits:
    """Loads a dataset into memory, on the CPU.

    Every split is stratified: it holds the classes in the proportion of the whole. ``digits``, and
    a folder without ``train/`` and ``test/``, come without a test set: a fifth of them becomes
    one, the same for every ``seed``, so that figures of several seeds speak of the same images.

    Args:
        dataset: ``digits`` (inside scikit-learn, no files needed), ``fashion-mnist``, ``cifar10``,
            ``cifar100`` (through torchvision) or ``folder``: RGB images of one size in
            ``data_dir/{train,test}/CLASS/`` or in ``data_dir/CLASS/``, decoded once into a cache.
        data_dir: Folder of the files.
        seed: Decides which training images become validation images; 0 or more.
        validation: Share of the training images held out, in [0, 1).
        train_size: How many of the remaining training images are kept; ``None`` keeps all.
        download: Whether missing files may be fetched from the network.

    Returns:
        The training, validation and test sets, each in the order of its source.

    Raises:
        BilevelError: The images cannot be had, or an argument is out of its range.

    Example:
        >>> splits = load_images("digits", ".", seed=0)
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (1294, 144, 359)
    """
    if seed < 0:
        raise BilevelError(f"seed is {seed}: it seeds the validation split; give 0 or more")
    if not 0 <= validation < 1:
        raise BilevelError(
            f"validation is {validation}: it is a share of the training images; give it in [0, 1)"
        )
    root = Path(data_dir).expanduser()
    if dataset == "digits":
        train, test = _digits()
    elif dataset == "folder":
        train, test = _folder(root)
    elif dataset in _TORCHVISION:
        train, test = (_torchvision(dataset, root, part, download) for part in (True, False))
    else:
        raise BilevelError(f"dataset {dataset!r} is unknown; give {', '.join(get_args(Dataset))}")
    held_out, train = _split(train, round(validation * len(train)), seed)
    if train_size is not None:
        if not 1 <= train_size <= len(train):
            raise BilevelError(
                f"train_size is {train_size}: {len(train)} training images remain beside the "
                f"validation set; give 1 to {len(train)}"
            )
        train, _ = _split(train, train_size, seed)
    return Splits(train, held_out, test)


def sample(images: ImageSet, size: int | None, *, seed: int = 0) -> ImageSet:
    """A stratified sample: the classes keep their proportions.

    Args:
        images: The images.
        size: How many to draw; all of them if None, or if there are no more.
        seed: Decides which.

    Returns:
        The sample, in the order of ``images``.

    Raises:
        BilevelError: If ``size`` is less than 1.

    Example:
        >>> digits = load_images("digits", ".", seed=0).test
        >>> sample(digits, 20).labels.bincount()
        tensor([2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    if size is None or size >= len(images):
        return images
    if size < 1:
        raise BilevelError(f"a sample of {size} images is empty: give a size of 1 or more")
    return _split(images, size, seed)[0]


def checksum(splits: Splits) -> int:
    """A number that tells images from others, for processes that must have the same.

    Args:
        splits: Images on the CPU.

    Returns:
        32 bits of their pixels and labels.
    """
    found = 0
    for part in splits:
        for tensor in (part.images, part.labels):
            found = zlib.crc32(np.ascontiguousarray(tensor.numpy()).data, found)
    return found


def _split(images: ImageSet, size: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Draws ``size`` images, stratified: what was drawn, and the rest."""
    # The images are shuffled, then the r-th of the n images of a class goes to place (r + ½) / n
    # between 0 and 1: read in this order, each beginning holds the classes in proportion.
    shuffled = np.random.default_rng(seed).permutation(len(images))
    labels = images.labels.numpy(force=True)[shuffled]
    place = np.empty(len(images))
    for label in range(len(images.classes)):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
    order = torch.from_numpy(shuffled[np.argsort(place, kind="stable")])
    return images.subset(order[:size].sort().values), images.subset(order[size:].sort().values)


def _hold_out_test(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a set without a test set."""
    test, train = _split(images, round(_TEST_SHARE * len(images)), seed=0)
    return train, test


def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1797 digits, 8×8: their grey levels 0…16 become bytes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return _hold_out_test(ImageSet(images, labels, tuple(str(name) for name in range(10))))


def _folder(root: Path) -> tuple[ImageSet, ImageSet]:
    """Training and test images of an image folder."""
    sets = [
        ImageSet(torch.from_numpy(tree.read()), torch.from_numpy(tree.labels), tree.classes)
        for tree in find_trees(root)
    ]
    if len(sets) == 1:
        return _hold_out_test(sets[0])
    train, test = sets
    if train.images.shape[1:] != test.images.shape[1:]:
        height, width, test_height, test_width = (*train.images.shape[2:], *test.images.shape[2:])
        raise BilevelError(
            f"images differ in size: those in {root}/train are {width}x{height} and those in "
            f"{root}/test are {test_width}x{test_height} pixels; bring all images to one size"
        )
    return train, test


def _torchvision(name: str, root: Path, train: bool, download: bool) -> ImageSet:
    """The training or the test images of one of torchvision's datasets."""
    class_name, folder = _TORCHVISION[name]
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise BilevelError(
            f"{name} is read by torchvision, which cannot be imported ({_line(error)}); "
            "install the torchvision that belongs to the installed torch, or use digits or folder"
        ) from error
    try:
        source: Any = getattr(torchvision.datasets, class_name)(root, train, download=download)
    except Exception as error:  # whatever the network, the archive or the files gave torchvision
        raise BilevelError(
            f"{name} is not to be had in {root / folder} ({_line(error)}); put its unpacked files "
            f"there, {'' if download else 'allow the download, '}or use digits, which needs none"
        ) from error
    pixels = torch.as_tensor(source.data)
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.as_tensor(source.targets), tuple(source.classes))


def _line(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
