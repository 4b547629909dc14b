"""Splits of an image set, and stratified samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bilevel.errors import BilevelError
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.data.splits import hold_out_by_content, hold_out_test, sample


def test_a_sample_is_stratified() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 0, 2, 1, 3]).repeat(20)
    images = ImageSet(torch.arange(200).byte().view(-1, 1, 1, 1), labels, tuple("abcd"))
    small = sample(images, 40, seed=3)
    drawn = small.images.flatten().long()
    assert small.labels.bincount().tolist() == [20, 12, 4, 4]
    assert torch.equal(small.labels, labels[drawn])
    assert (drawn.diff() > 0).all()  # in the order of the images
    assert torch.equal(small.images, sample(images, 40, seed=3).images)
    assert not torch.equal(small.images, sample(images, 40, seed=4).images)
    assert len(sample(images, 1)) == 1
    assert sample(images, None) is sample(images, 10_000) is images
    with pytest.raises(BilevelError, match="a sample of 0 images is empty"):
        sample(images, 0)


def test_a_rare_class_is_not_sampled_more_often_than_its_share() -> None:
    labels = (torch.arange(100) >= 98).long()
    images = ImageSet(torch.zeros(100, 1, 1, 1).byte(), labels, ("often", "rarely"))
    rare = [int(sample(images, size).labels.sum()) for size in (1, 10, 20, 50, 80, 99)]
    assert rare == [0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (3, 1), (7, 1), (8, 2), (10, 2)])
def test_a_fifth_of_each_class_is_held_out(count: int, held_out: int) -> None:
    labels = torch.arange(2).repeat(count)
    images = ImageSet(torch.zeros(2 * count, 1, 1, 1).byte(), labels, ("a", "b"))
    sums = np.random.default_rng(0).integers(0, 256, (2 * count, 32), np.uint8)
    train, test = hold_out_by_content(images, sums)
    assert test.labels.bincount(minlength=2).tolist() == [held_out] * 2
    assert train.labels.bincount(minlength=2).tolist() == [count - held_out] * 2


def test_an_image_of_two_classes_is_told() -> None:
    images = ImageSet(torch.zeros(8, 1, 1, 1).byte(), torch.arange(8) // 4, ("cat", "dog"))
    sums = np.arange(8, dtype=np.uint8)[:, None].repeat(32, 1)
    sums[4:6] = sums[0]
    with pytest.warns(UserWarning, match=r"several classes: 1 \(.* cat and dog\); .*: remove"):
        hold_out_by_content(images, sums)


def test_the_held_out_fifth_is_the_same_in_every_version() -> None:
    """A classifier that an older one trained is not tested on its training images."""
    pixels, labels = torch.arange(20).byte().view(-1, 1, 1, 1), torch.arange(20) % 2
    train, test = hold_out_test(ImageSet(pixels, labels, ("a", "b")))
    assert test.images.flatten().tolist() == [4, 6, 13, 19]
    assert len(train) == 16


def test_test_images_stay_test_images_when_others_come() -> None:
    """At most one image of a class changes sides when the class has one more."""
    pixels = torch.randint(256, (121, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(121) % 4
    labels[-1] = 1
    few, many = (ImageSet(pixels[:n], labels[:n], tuple("abcd")) for n in (120, 121))
    sums = np.random.default_rng(0).integers(0, 256, (121, 32), np.uint8)
    train, test = hold_out_by_content(few, sums[:120])
    assert test.labels.bincount().tolist() == [6, 6, 6, 6]
    assert len(train) + len(test) == 120
    seen = {bytes(image.numpy()) for image in train.images}
    _, later = hold_out_by_content(many, sums)
    assert sum(bytes(image.numpy()) in seen for image in later.images) <= 1
    alone = ImageSet(pixels[:3], torch.tensor([0, 0, 1]), ("two", "one"))
    assert sorted(len(part) for part in hold_out_by_content(alone, sums[:3])) == [1, 2]


@pytest.mark.parametrize(
    ("files", "held_out"),
    [
        ([0, 1, 1, 1, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3]),
        ([0, 0, 0, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2]),
        ([0, 1, 2, 2, 2, 2, 2, 2, 2, 2], [0, 1]),
        ([0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [0]),
        ([0, 0, 0, 0], []),
    ],
)
def test_copies_of_a_file_are_on_one_side(files: list[int], held_out: list[int]) -> None:
    """Else a classifier is tested on what it has seen; some images are left to train on."""
    count = len(files)
    images = ImageSet(torch.arange(count).byte().view(-1, 1, 1, 1), torch.zeros(count).long(), "a")
    sums = np.zeros((count, 32), np.uint8)
    sums[:, 0] = files
    train, test = hold_out_by_content(images, sums)
    assert test.images.flatten().tolist() == held_out
    assert len(train) == count - len(held_out) > 0
