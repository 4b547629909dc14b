"""Image files as arrays: RGB of 8 bits, and errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bilevel.errors import BilevelError
from bilevel.robustness.data.cache import Bytes

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK = 256  # images per task of the thread pool, whose overhead is then negligible


def decode(paths: list[Path], side: int | None = None) -> Bytes:
    """Decodes all images, with a progress bar on the standard error.

    Args:
        paths: The files, one or more.
        side: Their height and width: images are scaled and cropped to it, turned upright where the
            camera says how; None for images that have one size.

    Returns:
        RGB, ``(N, 3, H, W)``.

    Raises:
        BilevelError: An image cannot be decoded, has more than 8 bits a channel or is transparent,
            or the images differ in size.
    """
    first = _pixels(paths[0], side)
    images = np.empty((len(paths), *first.shape), np.uint8)

    def decode_chunk(begin: int) -> None:
        for index, path in enumerate(paths[begin : begin + _CHUNK], start=begin):
            pixels = _pixels(path, side)
            if pixels.shape != first.shape:
                raise BilevelError(
                    f"images differ in size: {paths[0]} is {_size(first)} and {path} is "
                    f"{_size(pixels)} pixels; bring all images to one size, as image_size "
                    "(--image-size) does by scaling and cropping them"
                )
            images[index] = pixels

    begins = range(0, len(paths), _CHUNK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        title = f"Decoding {len(paths)} images"
        for _ in _with_progress_bar(pool.map(decode_chunk, begins), len(begins), title):
            pass
    return images


def _with_progress_bar(parts: Iterator[None], total: int, title: str) -> Iterable[None]:
    """The parts, with a progress bar on a terminal if rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return parts
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(parts, title, total, console=console, transient=True, disable=hidden)


def _pixels(path: Path, side: int | None) -> Bytes:
    """One image as RGB, ``(3, H, W)``."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            mode, transparent = image.mode, _is_transparent(image)
            rgb = image.convert("RGB")
            if side is not None:
                rgb = ImageOps.fit(ImageOps.exif_transpose(rgb), (side, side))
            pixels = np.asarray(rgb).transpose(2, 0, 1)
    except Exception as error:  # decoders raise more kinds than Pillow documents
        raise BilevelError(
            f"image {path} cannot be decoded: {error}; repair it or remove it"
        ) from error
    if mode.startswith(("I", "F")):  # Pillow would silently clip the values at 255
        raise BilevelError(
            f"image {path} has more than 8 bits a channel (mode {mode}); convert it to 8 bits"
        )
    if transparent:  # Pillow would silently show what lies under the transparent pixels
        raise BilevelError(
            f"image {path} is transparent in places: what is seen there depends on the background; "
            "flatten it onto one, and save it without an alpha channel"
        )
    return pixels


def _is_transparent(image: Image) -> bool:
    """Whether a pixel is not opaque; an alpha channel alone does no harm."""
    if not {"A", "a"} & {*image.getbands()} and "transparency" not in image.info:
        return False
    return bool((np.asarray(image.convert("RGBA").getchannel("A")) < 255).any())


def _size(pixels: Bytes) -> str:
    """Width x height."""
    return f"{pixels.shape[2]}x{pixels.shape[1]}"
