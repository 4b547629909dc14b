"""What it means that a network cannot compute, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from bilevel.errors import BilevelError, first_line


@contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Within the block, an error for want of memory tells what helps.

    Args:
        batch_size: Images a step.

    Yields:
        Nothing.

    Raises:
        BilevelError: If memory ends.
        RuntimeError: Whatever else is raised.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise BilevelError(
            f"out of memory with batches of {batch_size} images: activations take most of it; give "
            "--recompute or --cuda-graphs off, with which --resume goes on, or begin again with a "
            "smaller --batch-size or --precision bf16"
        ) from error


@contextmanager
def explain_misfit(shape: Sequence[int]) -> Iterator[None]:
    """Within the block, in which a classifier alone computes, its error tells what it was given.

    Args:
        shape: Channels, height and width of the images that it is given.

    Yields:
        Nothing.

    Raises:
        BilevelError: If the classifier fails.
        RuntimeError: If memory ends.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise
        raise BilevelError(
            f"the classifier cannot compute with float32 images of {tuple(shape)} "
            f"({first_line(error)}): give images with the channels, height and width that it is "
            "made for, and a network of another precision as its .float()"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    # Torch raises no class of its own where a processor's memory ends.
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
