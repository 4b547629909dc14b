"""Batches of images, made on the device that holds the images.

The usual image sets are small (CIFAR-10 is 184 MB as bytes) and are kept on the device as a whole;
a batch is an index, a crop and a flip there, without worker processes, without a Python loop over
images and without waiting for the device. The random numbers of an epoch are a function of (seed,
epoch) alone, so that a run resumed within an epoch continues with the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.robustness.data.augment import Augment
from bilevel.robustness.data.images import ImageSet


class Batch(NamedTuple):
    """A batch of labelled images.

    Attributes:
        x: Images, ``(B, C, H, W)`` float in [0, 1].
        y: Their classes, ``(B,)`` int64.
    """

    x: Tensor
    y: Tensor


class TrackedBatch(NamedTuple):
    """A batch of training images that tells which they are.

    Attributes:
        x: Images, ``(B, C, H, W)`` float in [0, 1].
        y: Their classes, ``(B,)`` int64.
        rows: Their positions in the training set, ``(B,)`` int64.
        drawn: How each was augmented, as :meth:`Augment.draw` returns it; None if they were not.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    drawn: Tensor | None


def batches(images: ImageSet, batch_size: int) -> Iterator[Batch]:
    """All images once, in their stored order: for evaluation.

    Args:
        images: The images; the batches are on their device.
        batch_size: Images a batch; the last one may be smaller.

    Returns:
        The batches; none for an empty set.

    Raises:
        BilevelError: ``batch_size`` is not a positive integer.

    Example:
        >>> images = ImageSet(torch.zeros(5, 1, 8, 8).byte(), torch.arange(5), tuple("abcde"))
        >>> [batch.y.tolist() for batch in batches(images, 2)]
        [[0, 1], [2, 3], [4]]
    """

    def batch(begin: int) -> Batch:
        part = slice(begin, begin + batch_size)
        return Batch(_to_float(images.images[part]), images.labels[part])

    return map(batch, _starts(images, batch_size))


def shuffled_batches(
    images: ImageSet,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augment: Augment | None = None,
    start: int = 0,
    share: Callable[[int], slice] = lambda count: slice(count),
    drop_last: bool = False,
    tracked: bool = False,
) -> Iterator[Batch | Any]:  # Any for TrackedBatch, which few callers ask for
    """All images once, shuffled and augmented: for training.

    The order and the augmentation are drawn on the CPU from (``seed``, ``epoch``) and sent to the
    device in one transfer: the batches are the same on every device, and ``start`` skips batches
    without making them.

    Args:
        images: The images; the batches are on their device.
        batch_size: Images a batch; the last one may be smaller.
        seed: Seed of the run, 0 or more.
        epoch: Number of the epoch, from 0.
        augment: The augmentation; None for none.
        start: The first batch to make, for a run resumed within an epoch.
        share: From the number of images of a batch to the slice of them to make; all unless given.
            :func:`bilevel.distributed.shard` if several processes share a batch.
        drop_last: Whether the last batch is left out if it is smaller than the others.
        tracked: Whether the batches tell which images they hold: each is a :class:`TrackedBatch`.

    Returns:
        The batches ``start``, ``start + 1``, … of the epoch.

    Raises:
        BilevelError: A number is out of its range.

    Example:
        >>> images = ImageSet(torch.zeros(5, 1, 8, 8).byte(), torch.arange(5), tuple("abcde"))
        >>> epoch = shuffled_batches(images, 2, seed=0, epoch=7, augment=Augment(padding=1))
        >>> sorted(torch.cat([batch.y for batch in epoch]).tolist())
        [0, 1, 2, 3, 4]
    """
    starts = _starts(images, batch_size)
    if drop_last:
        starts = starts[: len(images) // batch_size]
    count("seed", seed, least=0)
    count("epoch", epoch, least=0)
    if not 0 <= start <= len(starts):
        raise BilevelError(
            f"start is {start}: an epoch of {len(images)} images has {len(starts)} batches of "
            f"{batch_size}; resume with the data and the batch size of the stopped run"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    plan = torch.from_numpy(rng.permutation(len(images))).unsqueeze(0)
    if augment is not None:
        plan = torch.cat([plan, augment.draw(len(images), rng)])
    plan = plan.to(images.images.device, non_blocking=True)

    def batch(begin: int) -> Batch | TrackedBatch:
        part = plan[:, begin : begin + batch_size]
        part = part[:, share(part.shape[1])]
        rows, drawn = part[0], None if augment is None else part[1:]
        pixels = images.images.index_select(0, rows)
        if augment is not None:
            pixels = augment(pixels, part[1:])
        made = Batch(_to_float(pixels), images.labels.index_select(0, rows))
        return TrackedBatch(*made, rows, drawn) if tracked else made

    return map(batch, starts[start:])


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes one value a sample so that it broadcasts over each sample's tensor.

    Args:
        values: ``(B,)``.
        like: ``(B, ...)``.

    Returns:
        ``(B, 1, ...)``, of as many dimensions as ``like``.

    Example:
        >>> per_sample(torch.ones(2), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 1, 1, 1])
    """
    return values.view(-1, *(1,) * (like.dim() - 1))


def _starts(images: ImageSet, batch_size: int) -> range:
    """The position of each batch's first image."""
    return range(0, len(images), count("batch_size", batch_size))


def _to_float(pixels: Tensor) -> Tensor:
    """Bytes as floats in [0, 1], bit for bit as torchvision's ``ToTensor``, on any device."""
    # CUDA divides by a Python number by multiplying with its rounded reciprocal; not by a tensor.
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))
