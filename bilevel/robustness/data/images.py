"""Image sets in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.arguments import instance_of
from bilevel.errors import BilevelError


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
        """Checks types and shapes; values would have to be read from the device."""
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

    def check(self) -> None:
        """Checks that an accuracy is defined: reads the labels from the device.

        Raises:
            BilevelError: If there are no images, or a label is none of the classes.
        """
        if not len(self):
            raise BilevelError(
                "the image set is empty: its accuracy is not defined; give one image or more"
            )
        low, high = (int(label) for label in self.labels.aminmax())
        if low < 0 or high >= len(self.classes):
            raise BilevelError(
                f"the labels run from {low} to {high}, but there are {len(self.classes)} classes: "
                f"a label is the position of a class; give 0 to {len(self.classes) - 1}"
            )

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on ``device``.

        Args:
            device: The device.

        Returns:
            An image set on it. Tensors that are already there are shared, not copied.
        """
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at ``indices``, in that order, or in a mask.

        Args:
            indices: Positions in this set, or a mask of bool, ``(N,)``.

        Returns:
            A copy of these images, with the names of all classes.

        Raises:
            BilevelError: If a mask is not of all images.
        """
        rows = torch.as_tensor(indices, device=self.labels.device)
        if rows.dtype != torch.bool:
            rows = rows.long()  # of no indices, too
        elif rows.shape != self.labels.shape:
            raise BilevelError(
                f"the mask has shape {tuple(rows.shape)}: it tells of each image whether it is in "
                f"the subset; give one of shape ({len(self)},), or positions"
            )
        return ImageSet(self.images[rows], self.labels[rows], self.classes)


def image_set(name: str, images: object) -> ImageSet:
    """Checks that an argument is an image set.

    Args:
        name: The argument's name.
        images: Its value.

    Returns:
        The value.

    Raises:
        BilevelError: If it is something else, such as a batch.
    """
    remedy = (
        "ImageSet(bytes, labels, classes), whose images have a class each; for labels of another "
        "kind call game.step and attack(…) batch by batch"
    )
    checked: ImageSet = instance_of(name, images, ImageSet, remedy)  # type: ignore[assignment]
    return checked
