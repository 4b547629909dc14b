"""Image files of several pages or frames, of which Pillow reads the first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel.errors import BilevelError
from bilevel.robustness.data.decoding import read_image
from bilevel.robustness.data.sources import load_images
from tests.images import write_image, write_tree


def save_pages(path: Path, values: list[int]) -> Path:
    """One page or frame for each grey value."""
    first, *others = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in values]
    first.save(path, save_all=True, append_images=others)
    return path


@pytest.mark.parametrize("name", ["stack.tif", "clip.gif", "clip.webp", "clip.png"])
def test_pages_and_frames_are_refused_rather_than_lost(tmp_path: Path, name: str) -> None:
    path = save_pages(tmp_path / name, [0, 100, 200])
    with pytest.raises(BilevelError) as error:
        read_image(path)
    assert str(error.value) == (
        f"image {path} has 3 pages or frames: all but the first would be lost; save each that "
        "counts as a file of its own"
    )


@pytest.mark.parametrize("name", ["page.tif", "still.gif", "still.webp", "still.png"])
def test_a_single_page_is_read(tmp_path: Path, name: str) -> None:
    image = read_image(save_pages(tmp_path / name, [100]))
    assert torch.equal(image, torch.full((1, 3, 4, 5), 100 / 255))


def test_a_stack_in_a_folder_is_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_image(root / "dog" / "page.tif", 1)
    assert sum(map(len, load_images("folder", root, seed=0))) == 21
    path = save_pages(root / "dog" / "stack.tif", [0, 200])
    with pytest.raises(BilevelError, match=f"image {path} has 2 pages or frames"):
        load_images("folder", root, seed=0)


def test_a_photograph_with_a_preview_is_its_photograph(tmp_path: Path) -> None:
    """As many cameras and phones write a ``.jpg``."""
    path = save_pages(tmp_path / "photo.mpo", [100, 200]).rename(tmp_path / "photo.jpg")
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)  # type: ignore[attr-defined]
    assert torch.equal(read_image(path), torch.full((1, 3, 4, 5), 100 / 255))
