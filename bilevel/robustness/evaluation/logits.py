"""A classifier's logits, and what they say of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bilevel import BilevelError, frozen
from bilevel.errors import describe
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.networks.failures import explain_misfit


def check_logits(output: object, batch: Batch, classes: Sequence[str]) -> Tensor:
    """Checks that a classifier's output is one logit for each class.

    The largest of a single logit is always class 0, which no attack changes.

    Args:
        output: What the classifier returned.
        batch: The images that it was given.
        classes: The names of the classes.

    Returns:
        The output, ``(B, K)``.

    Raises:
        BilevelError: If it is anything else.

    Example:
        >>> batch = Batch(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
        >>> check_logits(torch.zeros(2, 1), batch, ("cat", "dog"))
        Traceback (most recent call last):
        ...
        bilevel.errors.BilevelError: the classifier's output for 2 images is of shape (2, 1): an
        attack needs one logit for each of their 2 classes; return (B, 2) floating-point numbers, or
        name the images that it was trained on
    """
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.shape == (len(batch.y), len(classes)):
            return output
        kind = "" if output.is_floating_point() else f" and type {output.dtype}"
        found = f"of shape {tuple(output.shape)}{kind}"
    else:
        found = describe(output)
    raise BilevelError(
        f"the classifier's output for {len(batch.y)} images is {found}: an attack needs one logit "
        f"for each of their {len(classes)} classes; return (B, {len(classes)}) floating-point "
        "numbers, or name the images that it was trained on"
    )


def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified correctly, ``(N,)`` bool; not where a logit is not finite."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def logits_of(model: nn.Module, images: ImageSet, *, batch_size: int = 256) -> Tensor:
    """A classifier's logits, finite or not.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images.
        batch_size: Images a batch.

    Returns:
        ``(N, K)``.

    Raises:
        BilevelError: If the classifier is for images of other channels, size or precision, or its
            output is not one logit for each class.
    """
    parts, classes = batches(images, batch_size), images.classes
    with torch.no_grad(), frozen(model), explain_misfit(images.images.shape[1:]):
        return torch.cat([check_logits(model(batch.x), batch, classes) for batch in parts])
