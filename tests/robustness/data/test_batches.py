"""Batches: every image once, augmented as a plain loop would, and resumable."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.robustness.data.augment import Augment
from bilevel.robustness.data.batches import Batch, batches, shuffled_batches
from bilevel.robustness.data.images import ImageSet


def numbered(count: int, channels: int = 1, size: int = 4) -> ImageSet:
    """Random images; image i has label i, so that a label tells which image it belongs to."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), np.uint8)
    names = tuple(str(label) for label in range(count))
    return ImageSet(torch.from_numpy(pixels), torch.arange(count), names)


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(p.x, q.x) and torch.equal(p.y, q.y) for p, q in zip(a, b, strict=True)
    )


def reference(image: Tensor, padding: int, top: int, left: int, mirrored: int) -> Tensor:
    """One image: pad with black, cut out, mirror; written pixel by pixel."""
    height, width = image.shape[1:]
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source = width - 1 - column if mirrored else column
            y, x = row + top - padding, source + left - padding
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_augmentation_is_the_loop_over_images(
    count: int, channels: int, height: int, width: int, padding: int, flip: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(1, 256, (count, channels, height, width), np.uint8))
    augment = Augment(padding, flip)
    drawn = augment.draw(count, rng)
    expected = [
        reference(image, padding, *numbers)
        for image, numbers in zip(images, drawn.T.tolist(), strict=True)
    ]
    assert torch.equal(augment(images, drawn), torch.stack(expected))


def test_every_crop_and_mirror_is_equally_likely() -> None:
    drawn = Augment(padding=2).draw(20_000, np.random.default_rng(0))
    for row, values in zip(drawn, (5, 5, 2), strict=True):
        share = torch.bincount(row, minlength=values) / row.numel()
        assert share.shape == (values,)
        assert (share - 1 / values).abs().max() < 0.015
    together = torch.bincount(drawn[0] + 5 * drawn[1] + 25 * drawn[2], minlength=50) / 20_000
    assert (together - 1 / 50).abs().max() < 0.005
    assert not Augment(padding=2, flip=False).draw(100, np.random.default_rng(0))[2].any()


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 20), batch_size=st.integers(1, 25), epoch=st.integers(0, 3))
def test_an_epoch_holds_each_image_once_with_its_label(
    count: int, batch_size: int, epoch: int
) -> None:
    images = numbered(count)
    drawn = list(shuffled_batches(images, batch_size, seed=1, epoch=epoch))
    assert [len(batch.y) for batch in drawn[:-1]] == [batch_size] * (len(drawn) - 1)
    labels = torch.cat([batch.y for batch in drawn])
    assert labels.sort().values.tolist() == list(range(count))
    assert torch.equal(torch.cat([batch.x for batch in drawn]), images.images[labels] / 255)


@pytest.mark.parametrize("augment", [None, Augment(1)])
def test_processes_share_the_images_of_each_batch(augment: Augment | None) -> None:
    """The last batch of eleven images has only three of them."""
    images = numbered(11)
    whole = list(shuffled_batches(images, 4, seed=5, epoch=2, augment=augment))
    halves = [
        list(shuffled_batches(images, 4, seed=5, epoch=2, augment=augment, share=share))
        for share in (lambda count: slice(count // 2), lambda count: slice(count // 2, count))
    ]
    assert [[len(batch.y) for batch in half] for half in halves] == [[2, 2, 1], [2, 2, 2]]
    parts = [Batch(*map(torch.cat, zip(*pair, strict=True))) for pair in zip(*halves, strict=True)]
    assert equal(parts, whole)


@pytest.mark.parametrize("augment", [None, Augment(1), Augment(2, flip=False)])
def test_start_resumes_an_epoch_bit_for_bit(augment: Augment | None) -> None:
    images = numbered(11, channels=3)
    whole = list(shuffled_batches(images, 3, seed=5, epoch=2, augment=augment))
    for start in range(5):
        rest = list(shuffled_batches(images, 3, seed=5, epoch=2, augment=augment, start=start))
        assert equal(rest, whole[start:])


def test_start_makes_no_batch_that_it_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    augmented = []

    def spy(augment: Augment, images: Tensor, drawn: Tensor) -> Tensor:
        augmented.append(len(images))
        return images

    monkeypatch.setattr(Augment, "__call__", spy)
    list(shuffled_batches(numbered(10), 2, seed=0, epoch=0, augment=Augment(), start=4))
    assert augmented == [2]


def test_seed_and_epoch_decide_the_batches_and_nothing_else() -> None:
    images = numbered(32)

    def epoch(seed: int, number: int) -> list[Batch]:
        return list(shuffled_batches(images, 8, seed=seed, epoch=number, augment=Augment(1)))

    first = epoch(0, 0)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert equal(epoch(0, 0), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(epoch(0, 1), first)
    assert not equal(epoch(1, 0), first)
    assert not equal(epoch(0, 1), epoch(1, 0))


def test_the_batch_size_only_cuts_the_epoch() -> None:
    whole, parts = (
        list(shuffled_batches(numbered(20), size, seed=3, epoch=1, augment=Augment(2)))
        for size in (20, 6)
    )
    assert torch.equal(whole[0].x, torch.cat([batch.x for batch in parts]))
    assert torch.equal(whole[0].y, torch.cat([batch.y for batch in parts]))


@pytest.mark.parametrize("count", [22, 20, 3])
def test_the_smaller_batch_at_the_end_can_be_dropped(count: int) -> None:
    epoch = partial(shuffled_batches, numbered(count), 4, seed=5, epoch=2)
    assert equal([*epoch(drop_last=True)], [*epoch()][: count // 4])
    assert equal([*epoch(drop_last=True, start=count // 4)], [])
    with pytest.raises(BilevelError, match=f"has {count // 4} batches of 4"):
        epoch(drop_last=True, start=count // 4 + 1)


def test_a_process_has_its_share_of_each_batch() -> None:
    epoch = partial(shuffled_batches, numbered(6), 3, seed=0, epoch=0, augment=Augment(1))
    whole = [Batch(batch.x[1:], batch.y[1:]) for batch in epoch()]
    assert equal(list(epoch(share=lambda count: slice(1, count))), whole)


def test_augmentation_differs_between_epochs_and_leaves_the_order() -> None:
    images = numbered(32)
    plain = shuffled_batches(images, 32, seed=0, epoch=0)
    moved = shuffled_batches(images, 32, seed=0, epoch=0, augment=Augment(1))
    assert torch.equal(next(plain).y, next(moved).y)
    bright = ImageSet(torch.full((32, 1, 4, 4), 255).byte(), images.labels, images.classes)
    epochs = [
        next(shuffled_batches(bright, 32, seed=0, epoch=epoch, augment=Augment(2))).x
        for epoch in (0, 1)
    ]
    assert not torch.equal(*epochs)


def test_evaluation_keeps_the_stored_order() -> None:
    images = numbered(7)
    read = list(batches(images, 3))
    assert torch.cat([batch.y for batch in read]).tolist() == list(range(7))
    assert torch.equal(torch.cat([batch.x for batch in read]), images.images / 255)
    assert [len(batch.x) for batch in read] == [3, 3, 1]


def test_an_empty_set_has_no_batches() -> None:
    empty = numbered(3).subset([])
    assert list(batches(empty, 2)) == []
    assert list(shuffled_batches(empty, 2, seed=0, epoch=0, augment=Augment())) == []


def test_floats_are_those_of_torchvision() -> None:
    from torchvision.transforms.functional import to_tensor

    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    images = ImageSet(torch.from_numpy(grey).permute(2, 0, 1)[None], torch.zeros(1).long(), ("a",))
    (stored,) = batches(images, 1)
    (shuffled,) = shuffled_batches(images, 1, seed=0, epoch=0)
    assert torch.equal(stored.x[0], to_tensor(grey))
    assert torch.equal(shuffled.x, stored.x)
    assert stored.x.dtype == torch.float32
    assert stored.x.max() == 1


def test_batches_do_not_change_the_images() -> None:
    images = numbered(5)
    before = images.images.clone()
    for batch in [*batches(images, 2), *shuffled_batches(images, 2, seed=0, epoch=0)]:
        batch.x.zero_()
    assert torch.equal(images.images, before)


def test_bad_numbers_are_refused_at_once() -> None:
    images = numbered(10)
    with pytest.raises(BilevelError, match="batch_size is 0"):
        batches(images, 0)
    with pytest.raises(BilevelError, match=r"batch_size is 2\.5"):
        batches(images, 2.5)
    with pytest.raises(BilevelError, match="batch_size is -1"):
        shuffled_batches(images, -1, seed=0, epoch=0)
    with pytest.raises(BilevelError, match="seed is -1"):
        shuffled_batches(images, 2, seed=-1, epoch=0)
    with pytest.raises(BilevelError, match="epoch is -1"):
        shuffled_batches(images, 2, seed=0, epoch=-1)
    with pytest.raises(BilevelError, match="has 5 batches of 2"):
        shuffled_batches(images, 2, seed=0, epoch=0, start=6)
    assert list(shuffled_batches(images, 2, seed=0, epoch=0, start=5)) == []
    with pytest.raises(BilevelError, match="padding is -1"):
        Augment(padding=-1)
