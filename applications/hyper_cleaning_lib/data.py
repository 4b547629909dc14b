"""Images with a fraction of wrong training labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bilevel import BilevelError
from bilevel.robustness import Batch, ImageSet, load_images, sample
from hyper_cleaning_lib.problem import Images

Dataset = Literal["digits", "fashion-mnist"]
HELD_OUT = 0.3
"""Fraction of the training images that the validation images are drawn from."""


@dataclass(frozen=True)
class Corrupted:
    """The data of an experiment; leader and follower see :attr:`images` only.

    Args:
        images: Training and validation images, flattened, pixels in [0, 1].
        test: Test images.
        wrong: Which training labels are wrong, ``(N,)`` bool.
        truth: The correct training labels.
        classes: The names of the classes.
    """

    images: Images
    test: Batch
    wrong: Tensor
    truth: Tensor
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> Corrupted:
        """Moves the tensors to a device.

        Args:
            device: The device.
        """
        train, validation, test = (
            Batch(x.to(device), y.to(device)) for x, y in (*self.images, self.test)
        )
        images = Images(train, validation)
        wrong, truth = self.wrong.to(device), self.truth.to(device)
        return Corrupted(images, test, wrong, truth, self.classes)

    def network(self, model: str) -> nn.Module:
        """A new network for these images.

        Args:
            model: ``linear``, or ``mlp`` with a hidden layer of 256.
        """
        pixels, classes = self.images.train.x.shape[1], len(self.classes)
        if model == "linear":
            return nn.Sequential(nn.Linear(pixels, classes))
        return nn.Sequential(nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, classes))


def load(
    dataset: Dataset,
    data_dir: Path = Path("data"),
    *,
    seed: int,
    share: float = 0.4,
    train_size: int = 1000,
    validation_size: int = 1000,
    download: bool = True,
) -> Corrupted:
    """Loads images and replaces a fraction of the training labels by wrong ones.

    Args:
        dataset: ``digits`` or ``fashion-mnist``.
        data_dir: Where the files are, see :func:`~bilevel.robustness.load_images`.
        seed: Of the split and of the wrong labels.
        share: The fraction of wrong labels, 0 < share < 1, uniform over the other classes.
        train_size: Number of training images.
        validation_size: Maximum number of validation images.
        download: Whether missing files may be downloaded.
    """
    if not 0 < share < 1:
        raise BilevelError(
            f"corrupted is {share}: some labels are wrong and some right; give a fraction between "
            "0 and 1"
        )
    data = load_images(
        dataset,
        data_dir,
        seed=seed,
        validation=HELD_OUT,
        train_size=train_size,
        download=download,
    )
    train, test = _batch(data.train), _batch(data.test)
    validation = _batch(sample(data.validation, validation_size, seed=seed))
    count = round(share * train_size)
    if not 0 < count < train_size:
        raise BilevelError(
            f"corrupted is {share}: {'every' if count else 'no'} label of {train_size} would be "
            "wrong; give another fraction, or more images"
        )
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.zeros(train_size, dtype=torch.bool)
    wrong[torch.randperm(train_size, generator=generator)[:count]] = True
    classes = len(data.train.classes)
    shift = torch.randint(1, classes, (train_size,), generator=generator)
    labels = torch.where(wrong, (train.y + shift) % classes, train.y)
    images = Images(Batch(train.x, labels), validation)
    return Corrupted(images, test, wrong, train.y, data.train.classes)


def _batch(images: ImageSet) -> Batch:
    return Batch(images.images.flatten(1).float() / 255, images.labels)
