"""Images of any size, brought to one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel.errors import BilevelError
from bilevel.robustness.data.folder import CACHE_NAME, list_images
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
    wide = tree.read(4)[tree.files.index("cat/wide.png")]
    # Twice as large, and the outer columns are cropped: the means of 2×2 blocks up to the filter.
    whole = np.array(Image.open(photos / "cat" / "wide.png"), float)[:, 2:10]
    blocks = whole.reshape(4, 2, 4, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.corrcoef(blocks.ravel(), wide.ravel())[0, 1] > 0.9


def test_an_image_of_that_size_stays_as_it_is(photos: Path) -> None:
    write_image(photos / "cat" / "right.png", 3, size=(4, 4))
    tree = list_images(photos)
    expected = np.array(Image.open(photos / "cat" / "right.png")).transpose(2, 0, 1)
    assert np.array_equal(tree.read(4)[tree.files.index("cat/right.png")], expected)


def test_another_size_is_not_read_from_the_cache(photos: Path) -> None:
    tree = list_images(photos)
    small, large = tree.read(4), tree.read(6)
    assert (small.shape[-1], large.shape[-1]) == (4, 6)
    assert (photos / CACHE_NAME).exists()
    assert np.array_equal(tree.read(4), small)


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    """A camera that was held on its side says so beside the pixels."""
    root = write_tree(tmp_path / "photos")
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: white moves to the right
    Image.fromarray(pixels).save(root / "cat" / "photo.jpg", exif=exif, quality=100)
    tree = list_images(root)
    photo = torch.from_numpy(tree.read(8)[tree.files.index("cat/photo.jpg")]).float()
    assert photo[:, :, 4:].mean() > 250
    assert photo[:, :, :4].mean() < 5


def test_images_that_are_no_files_have_their_size(tmp_path: Path) -> None:
    with pytest.raises(BilevelError, match="image_size is 4 and the images are those of digits"):
        load_images("digits", tmp_path, seed=0, image_size=4)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_bad_sizes(photos: Path, size: int) -> None:
    with pytest.raises(BilevelError, match=r"image_size is .*: it is a whole number from 1 on"):
        load_images("folder", photos, seed=0, image_size=size)
