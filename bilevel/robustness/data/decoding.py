"""Image files as arrays: RGB of 8 bits, and errors that name the file."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from bilevel.arguments import count
from bilevel.errors import BilevelError, few
from bilevel.robustness.data.cache import Bytes, Decoded

if TYPE_CHECKING:
    from PIL.Image import Image

_T = TypeVar("_T")
_CHUNK = 256  # images per task of the thread pool, whose overhead is then negligible


def decode(paths: list[Path], side: int | None = None) -> Decoded:
    """Decodes all images, with a progress bar on the standard error.

    Args:
        paths: The files, one or more.
        side: Their height and width: images are scaled and cropped to it, turned upright where the
            camera says how; None for images that have one size.

    Returns:
        The images.

    Raises:
        BilevelError: An image cannot be decoded, has several pages or frames or more than 8 bits a
            channel, or is transparent, or the images differ in size.
    """
    first = pixels(_content(paths[0]), paths[0], side)
    images = np.empty((len(paths), *first.shape), np.uint8)
    sums = np.empty((len(paths), 32), np.uint8)

    def decode_one(index: int, path: Path) -> None:
        content = _content(path)
        image = pixels(content, path, side)
        if image.shape != first.shape:
            raise BilevelError(
                f"images differ in size: {paths[0]} is {_size(first)} and {path} is "
                f"{_size(image)} pixels; bring all images to one size, as image_size "
                "(--image-size) does by scaling and cropping them"
            )
        images[index] = image
        sums[index] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)

    def decode_chunk(begin: int) -> list[tuple[Path, BilevelError]]:
        errors = []
        for index, path in enumerate(paths[begin : begin + _CHUNK], start=begin):
            try:
                decode_one(index, path)
            except BilevelError as error:
                errors.append((path, error))
        return errors

    begins = range(0, len(paths), _CHUNK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        title = f"Decoding {len(paths)} images"
        chunks = _with_progress_bar(pool.map(decode_chunk, begins), len(begins), title)
        errors = list(itertools.chain.from_iterable(chunks))
    _raise_first(errors)
    return Decoded(images, sums)


def _raise_first(errors: list[tuple[Path, BilevelError]]) -> None:
    """Raises the first error, with the names of a few other files that have one."""
    if not errors:
        return
    (_, first), *others = errors
    names = few([str(path) for path, _ in others])
    raise BilevelError(f"{first} (there are errors in {names} too)" if others else str(first))


def _with_progress_bar(parts: Iterator[_T], total: int, title: str) -> Iterable[_T]:
    """The parts, with a progress bar on a terminal if rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return parts
    console = Console(stderr=True)
    if not console.is_terminal:  # where rich 13 would end a line all the same
        return parts
    return track(parts, title, total, console=console, transient=True)


def read_image(path: str | os.PathLike[str], size: int | None = None) -> Tensor:
    """One image, read as those of a folder are, for a classifier that was trained on them.

    Args:
        path: The file.
        size: Height and width to which it is scaled and cropped, turned upright where the camera
            says how, as by ``image_size`` in training; None to leave it as it is.

    Returns:
        RGB in [0, 1], ``(1, 3, H, W)``.

    Raises:
        BilevelError: It cannot be read or decoded, has several pages or frames or more than 8 bits
            a channel, or is transparent, or ``size`` is no size.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> file = Path(tempfile.mkdtemp()) / "photo.png"
        >>> Image.new("RGB", (30, 20), "red").save(file)
        >>> read_image(file, 2)[0, 0]
        tensor([[1., 1.],
                [1., 1.]])
    """
    path = Path(path)
    if size is not None:
        count("size", size)
    found = np.ascontiguousarray(pixels(_content(path), path, size))
    return torch.from_numpy(found)[None] / 255


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BilevelError(
            f"image {path} cannot be read ({error.strerror}): make it readable, or give another"
        ) from error


def pixels(content: bytes, path: Path, side: int | None) -> Bytes:
    """One image as bytes.

    Args:
        content: The file.
        path: Its name, for messages.
        side: See :func:`decode`.

    Returns:
        RGB, ``(3, H, W)``.

    Raises:
        BilevelError: It cannot be decoded, has several pages or frames or more than 8 bits a
            channel, or is transparent.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            _check_whole(image, path)
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            if side is not None:
                ImageOps.exif_transpose(rgb, in_place=True)
                rgb = ImageOps.fit(rgb, (side, side))
            return np.asarray(rgb).transpose(2, 0, 1)
    except BilevelError:
        raise
    except UnidentifiedImageError as error:
        found = "is no image of a type that Pillow knows" if content else "is empty"
        raise BilevelError(f"image {path} {found}: repair it or remove it") from error
    except Exception as error:  # decoders raise more kinds than Pillow documents
        raise BilevelError(
            f"image {path} cannot be decoded: {error}; repair it or remove it"
        ) from error


def _check_whole(image: Image, path: Path) -> None:
    """Raises if a part would be lost as RGB of 8 bits, which Pillow does not tell."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # a camera's photograph, followed by its previews
        raise BilevelError(
            f"image {path} has {pages} pages or frames: all but the first would be lost; save each "
            "that counts as a file of its own"
        )
    if image.mode.startswith(("I", "F")):  # the values would be clipped at 255
        raise BilevelError(
            f"image {path} has more than 8 bits a channel (mode {image.mode}): scale it to 8 bits, "
            "such as (np.asarray(image) / 256).astype(np.uint8) of 16; Image.convert would clip it"
        )
    if _is_transparent(image):  # what lies under the transparent pixels would show
        raise BilevelError(
            f"image {path} is transparent in places: what is seen there depends on the background; "
            "flatten it onto one, and save it without an alpha channel"
        )


def _is_transparent(image: Image) -> bool:
    """Whether a pixel is not opaque; an alpha channel alone does no harm."""
    if not {"A", "a"} & {*image.getbands()} and "transparency" not in image.info:
        return False
    return bool((np.asarray(image.convert("RGBA").getchannel("A")) < 255).any())


def _size(image: Bytes) -> str:
    """Width x height."""
    return f"{image.shape[2]}x{image.shape[1]}"
