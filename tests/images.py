"""Random images, in memory and in folders, and how to compare sets of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bilevel.robustness import ImageSet, Splits


def image_set(count: int) -> ImageSet:
    """4×4 images of three classes."""
    pixels = torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 3, ("a", "b", "c"))


def counts(images: ImageSet) -> list[int]:
    """The number of images of each class."""
    return torch.bincount(images.labels, minlength=len(images.classes)).tolist()


def same(a: Splits, b: Splits) -> bool:
    """Whether both hold the same images in the same order."""
    return all(
        torch.equal(p.images, q.images) and torch.equal(p.labels, q.labels)
        for p, q in zip(a, b, strict=True)
    )


def write_image(path: Path, seed: int, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> None:
    """A random image of ``size`` = (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_tree(
    root: Path, classes: Sequence[str] = ("cat", "dog"), count: int = 10, seed: int = 0
) -> Path:
    for label, name in enumerate(classes):
        for index in range(count):
            write_image(root / name / f"{index:03}.png", seed + 1000 * label + index)
    return root
