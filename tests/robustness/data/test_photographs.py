"""Photographs of one's own: of any size and name, and always the same ones held out."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel.errors import BilevelError
from bilevel.robustness.data.decoding import read_image
from bilevel.robustness.data.folder import list_images
from bilevel.robustness.data.sources import load_images
from tests.images import write_image, write_tree


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = write_tree(tmp_path / "photos")
    write_image(root / "cat" / "wide.png", 1, size=(12, 8))
    write_image(root / "dog" / "high.png", 2, size=(7, 30))
    return root


def test_images_are_scaled_and_cropped_to_squares(photos: Path) -> None:
    splits = load_images("folder", photos, seed=0, image_size=4)
    assert {tuple(part.images.shape[1:]) for part in splits} == {(3, 4, 4)}
    tree = list_images(photos)
    wide = tree.read(4).images[tree.files.index("cat/wide.png")]
    # Twice as large, and the outer columns are cropped: the means of 2×2 blocks up to the filter.
    whole = np.array(Image.open(photos / "cat" / "wide.png"), float)[:, 2:10]
    blocks = whole.reshape(4, 2, 4, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.corrcoef(blocks.ravel(), wide.ravel())[0, 1] > 0.9


def test_an_image_of_that_size_stays_as_it_is(photos: Path) -> None:
    write_image(photos / "cat" / "right.png", 3, size=(4, 4))
    tree = list_images(photos)
    expected = np.array(Image.open(photos / "cat" / "right.png")).transpose(2, 0, 1)
    assert np.array_equal(tree.read(4).images[tree.files.index("cat/right.png")], expected)


def test_another_size_is_not_read_from_the_cache(photos: Path) -> None:
    tree = list_images(photos)
    small, large = tree.read(4).images, tree.read(6).images
    assert (small.shape[-1], large.shape[-1]) == (4, 6)
    assert {file.name for file in photos.glob(".*.npz")} == {
        ".bilevel-cache-4.npz",
        ".bilevel-cache-6.npz",
    }
    assert np.array_equal(tree.read(4).images, small)


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    """A camera that was held on its side says so beside the pixels."""
    root = write_tree(tmp_path / "photos")
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: white moves to the right
    Image.fromarray(pixels).save(root / "cat" / "photo.jpg", exif=exif, quality=100)
    tree = list_images(root)
    photo = torch.from_numpy(tree.read(8).images[tree.files.index("cat/photo.jpg")]).float()
    assert photo[:, :, 4:].mean() > 250
    assert photo[:, :, :4].mean() < 5


def test_images_that_are_no_files_have_their_size(tmp_path: Path) -> None:
    with pytest.raises(BilevelError, match="image_size is 4 and the images are those of digits"):
        load_images("digits", tmp_path, seed=0, image_size=4)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_bad_sizes(photos: Path, size: int) -> None:
    with pytest.raises(BilevelError, match=r"image_size is .*: it must be a whole number"):
        load_images("folder", photos, seed=0, image_size=size)
    with pytest.raises(BilevelError, match=r"size is .*: it must be a whole number of at least 1"):
        read_image(photos / "cat" / "wide.png", size)


@pytest.mark.parametrize("size", [4, 6])
def test_the_test_images_are_the_same_at_any_size(photos: Path, size: int) -> None:
    """Else a classifier that was trained at one size would have seen those of another."""
    files = list_images(photos)
    pixels = files.read(size).images
    held_out = {
        bytes(image.numpy())
        for image in load_images("folder", photos, seed=0, image_size=size).test.images
    }
    chosen = {
        name for name, image in zip(files.files, pixels, strict=True) if bytes(image) in held_out
    }
    sums = [hashlib.sha256((photos / name).read_bytes()).digest() for name in files.files]
    first = [
        min((s, n) for s, n, c in zip(sums, files.files, files.labels, strict=True) if c == label)[
            1
        ]
        for label in (0, 1)
    ]
    assert {*first} <= chosen
    assert len(chosen) == 4


def test_a_prediction_reads_what_training_read(photos: Path) -> None:
    write_image(photos / "cat" / "grey.png", 4, size=(9, 5), mode="L")
    tree = list_images(photos)
    for size in (4, 16):
        read = tree.read(size).images
        for name, image in zip(tree.files, read, strict=True):
            found = read_image(photos / name, size)
            assert torch.equal(found, torch.from_numpy(image)[None] / 255)
    with pytest.raises(BilevelError, match=r"none.png cannot be read \(No such file"):
        read_image(photos / "none.png")


def test_a_class_has_one_name_however_its_umlauts_are_written(tmp_path: Path) -> None:
    for part, form in (("train", "NFC"), ("test", "NFD")):
        names = [unicodedata.normalize(form, name) for name in ("Äpfel", "Zebra")]
        write_tree(tmp_path / part, names, seed=5000 * (part == "test"))
    splits = load_images("folder", tmp_path, seed=0)
    assert splits.train.classes == splits.test.classes == ("Zebra", "Äpfel")
    assert splits.test.labels.bincount().tolist() == [10, 10]


def test_images_in_training_and_test_set(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_tree(tmp_path / part, count=3, seed=5000 * (part == "test"))
    write_image(tmp_path / "test" / "cat" / "again.png", 0)
    with pytest.warns(UserWarning, match=r"1 of 7 images in .*test are in .*train too"):
        load_images("folder", tmp_path, seed=0)
