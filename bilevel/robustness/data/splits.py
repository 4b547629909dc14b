"""The splits of an image set, and samples of it.

Three sets: ``train`` to fit the classifier, ``validation`` (held out from the training images) to
choose a checkpoint or a hyperparameter, ``test`` to report one figure at the end. A checkpoint
chosen on the test set, as in much work on adversarial training, is reported too high.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.robustness.data.cache import Bytes
from bilevel.robustness.data.images import ImageSet

_TEST_SHARE = 0.2  # of datasets without a test set


class Splits(NamedTuple):
    """The three sets of an experiment.

    Attributes:
        train: Images to train on.
        validation: Images held out from the training images, to choose with.
        test: Images to report on.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def sample(images: ImageSet, size: int | None, *, seed: int = 0) -> ImageSet:
    """A stratified sample: the classes keep their proportions.

    Args:
        images: The images.
        size: Number of images to draw; None, or more than there are, for all.
        seed: Seed of the draw.

    Returns:
        The sample, in the order of ``images``.

    Raises:
        BilevelError: If ``size`` is less than 1.

    Example:
        >>> from bilevel.robustness import load_images
        >>> digits = load_images("digits", ".", seed=0).test
        >>> sample(digits, 20).labels.bincount()
        tensor([2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    if size is None or size >= len(images):
        return images
    if size < 1:
        raise BilevelError(f"a sample of {size} images is empty: give a size of 1 or more")
    return split(images, size, seed)[0]


def split(images: ImageSet, size: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Splits images in two, stratified.

    Args:
        images: The images.
        size: Number of images of the first part.
        seed: Seed of the draw.

    Returns:
        Both parts, each in the order of ``images``.

    Example:
        >>> images = ImageSet(torch.zeros(6, 1, 2, 2).byte(), torch.arange(6) // 3, ("cat", "dog"))
        >>> [part.labels.tolist() for part in split(images, 4, seed=0)]
        [[0, 0, 1, 1], [0, 1]]
    """
    order = stratified_order(images, seed)
    return images.subset(order[:size].sort().values), images.subset(order[size:].sort().values)


def stratified_order(images: ImageSet, seed: int) -> Tensor:
    """An order of images of which every prefix holds the classes in proportion.

    Args:
        images: The images.
        seed: Seed of the draw.

    Returns:
        Positions, ``(N,)`` int64 on the CPU.

    Example:
        >>> images = ImageSet(torch.zeros(6, 1, 2, 2).byte(), torch.arange(6) // 3, ("cat", "dog"))
        >>> images.labels[stratified_order(images, seed=0)[:4]].bincount()
        tensor([2, 2])
    """
    # The images are shuffled, then the r-th of the n images of a class is placed at (r + ½) / n.
    shuffled = np.random.default_rng(seed).permutation(len(images))
    labels = images.labels.numpy(force=True)[shuffled]
    place = np.zeros(len(images))
    for label in range(len(images.classes)):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(shuffled[np.argsort(place, kind="stable")])


def hold_out_test(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a dataset without a test set.

    Args:
        images: All images.

    Returns:
        Four fifths and one fifth of them, stratified and always the same.
    """
    test, train = split(images, round(_TEST_SHARE * len(images)), seed=0)
    return train, test


def _warn_of_two_labels(keys: Sequence[bytes], images: ImageSet) -> None:
    """Warns of files that are in the folders of several classes."""
    labels: defaultdict[bytes, set[int]] = defaultdict(set)
    for key, label in zip(keys, images.labels.tolist(), strict=True):
        labels[key].add(label)
    several = [found for found in labels.values() if len(found) > 1]
    if several:
        names = " and ".join(images.classes[label] for label in sorted(several[0])[:2])
        warnings.warn(
            f"images in the folders of several classes: {len(several)} (the first is in {names}); "
            "they are trained on with one label and may be tested with another: remove them from "
            "all folders but one",
            stacklevel=2,
        )


def hold_out_by_content(images: ImageSet, sums: Bytes) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a collection that may grow.

    A class's images are ordered by the checksums of their files, so that the size to which they are
    brought does not matter. One more image then moves at most one of its class from a part to the
    other, so that a classifier that was trained before is not tested on what it has seen. Copies of
    a file are one image: they stay together.

    Args:
        images: All images.
        sums: Their checksums, ``(N, 32)``.

    Returns:
        Four fifths and one fifth of each class, or more if the last file has copies; of two images
        one, of a single one none.
    """
    keys = [row.tobytes() for row in sums]
    _warn_of_two_labels(keys, images)
    test = np.zeros(len(images), bool)
    labels = images.labels.numpy(force=True)
    for label in range(len(images.classes)):
        members = sorted(np.flatnonzero(labels == label), key=keys.__getitem__)
        size = max(round(_TEST_SHARE * len(members)), 1)
        ends = [end for end, (a, b) in enumerate(pairwise(members), 1) if keys[a] != keys[b]]
        # Behind the copies of a file; in front of them if no image would be left to train on.
        cut = next((end for end in ends if end >= size), ends[-1] if ends else 0)
        test[members[:cut]] = True
    rows = torch.from_numpy(test)
    return images.subset(~rows), images.subset(rows)
