"""Checks of threat models and of their data, for mistakes that a result would not show."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError, NonFiniteError, describe
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.bounds import (
    PIXELS,
    Bounds,
    clipped,
    equal_bounds,
    rounding,
    width,
)
from bilevel.robustness.threats.losses import Targeted

_IMAGES = "(B, C, H, W) in [0, 1], bytes divided by 255, the rows of a table as images of one row"
_OTHERS = (
    "for other data give Linf, L2 or L1 their bounds=(low, high), or a Threat a check of its own"
)

_LOSSES_OF_TORCH = ("torch.nn.functional", "torch.nn.modules.loss")


def check_loss(loss: object) -> None:
    """Checks that a loss can be called with the classifier's output and the batch.

    Args:
        loss: The loss.

    Raises:
        BilevelError: If it takes other arguments, as those of torch do, which take labels.
    """
    called = getattr(loss, "func", loss)  # of a functools.partial
    takes_labels = getattr(called, "__module__", "") in _LOSSES_OF_TORCH
    if takes_labels or not _takes_two(loss):
        raise BilevelError(
            f"loss is {getattr(loss, '__name__', describe(loss))}: it is called as loss(output, "
            "batch) and returns one value a sample; give lambda output, batch: F.cross_entropy("
            'output, batch.y, reduction="none"), say'
        )


def _takes_two(loss: Any) -> bool:
    try:
        inspect.signature(loss).bind("output", "batch")
    except TypeError:
        return False
    except ValueError:  # of a function that is not written in Python
        return True
    return True


def check_radius(name: str, radius: float) -> None:
    """Checks that a radius is one number from 0 on.

    Args:
        name: Its name.
        radius: The radius.

    Raises:
        BilevelError: If it is anything else.
    """
    try:
        finite = math.isfinite(radius)
    except (TypeError, ValueError, RuntimeError) as error:  # of arrays and tensors
        raise BilevelError(
            f"{name} is {describe(radius)}: a threat model has one radius for all images and "
            "features; give a number, and attack the images of each radius in a batch of their "
            "own, or divide each feature by its radius"
        ) from error
    if not (finite and radius >= 0):
        raise BilevelError(
            f"{name} is {radius}: a radius is a number from 0 on; the paper's ε is 0.031"
        )


def check_reach(eps: float, bounds: Bounds | None) -> None:
    """Checks that a value may not change by more than bounds allow.

    Args:
        eps: The largest change of a value.
        bounds: The bounds; None if there are none.

    Raises:
        BilevelError: If it may.
    """
    if eps <= (widest := width(bounds)):
        return
    if equal_bounds(bounds, PIXELS):
        raise BilevelError(
            f"eps is {eps}: pixels lie in [0, 1], so ε = 1 allows every image already; give ε as a "
            "fraction of the pixel range, 8/255 rather than 8, or for other data their bounds"
        )
    raise BilevelError(
        f"eps is {eps}: the bounds are {widest:g} apart, so that ε allows all data already; give ε "
        "in units of the data"
    )


def check_values(batch: Batch | Targeted, bounds: Bounds | None) -> None:
    """Checks that data suit a threat model.

    Args:
        batch: Clean data: images for the bounds of pixels, of any kind for others.
        bounds: The bounds; None if there are none.

    Raises:
        BilevelError: If the data are not float of shape (B, C, H, W), with other bounds (B, ...),
            or lie outside the bounds by more than rounding; or if the bounds do not broadcast over
            a sample.
        NonFiniteError: If a value is NaN or infinite.
    """
    values, images = _tensor(batch), equal_bounds(bounds, PIXELS)
    if not values.is_floating_point() or (values.ndim != 4 if images else values.ndim < 2):
        kind, form = ("images", f"{_IMAGES}; {_OTHERS}") if images else ("data", "(B, ...)")
        raise BilevelError(
            f"{kind} are {values.dtype} of shape {tuple(values.shape)}: an attack moves each value "
            f"by fractions; give float of shape {form}"
        )
    check_within(values, bounds)


def check_within(values: Tensor, bounds: Bounds | None) -> None:
    """Checks that values lie within bounds, in one wait for the device.

    Args:
        values: Clean data, ``(B, ...)``.
        bounds: The bounds; None if there are none.

    Raises:
        BilevelError: If they lie outside by more than rounding, or the bounds do not broadcast over
            a sample.
        NonFiniteError: If a value is NaN or infinite.
    """
    _check_shapes(bounds, values)
    nearest = clipped(values, bounds)
    outside = (values - nearest).abs()
    if values.is_meta or (outside <= rounding(nearest)).all():  # which NaN is not
        return
    images = equal_bounds(bounds, PIXELS)
    if not values.isfinite().all():
        raise NonFiniteError(
            f"{'images have pixels' if images else 'data have values'} that are not finite: no "
            "attack moves them; check the data, and leave those samples out"
        )
    if images:
        raise BilevelError(
            f"images lie in [{values.min():.9g}, {values.max():.9g}]: the threat model is for "
            "pixels in [0, 1]; give such images and normalise inside the classifier; "
            f"{_OTHERS}"
        )
    raise BilevelError(
        f"data lie up to {outside.max():.3g} outside the threat model's bounds: clipped to them, "
        "they would move before any attack; give bounds that hold all data, or None"
    )


def _tensor(batch: Batch | Targeted) -> Tensor:
    """The data of a batch."""
    if not hasattr(batch, "x"):
        raise BilevelError(
            f"the batch is {describe(batch)}: a threat model reads images and labels by name; give "
            "robustness.Batch(images, labels)"
        )
    values: object = batch.x
    if not isinstance(values, Tensor):
        raise BilevelError(
            f"images are {describe(values)}: an attack takes gradients in them; give tensors, "
            "torch.from_numpy(images), labels likewise"
        )
    return values


def _check_shapes(bounds: Bounds | None, values: Tensor) -> None:
    sample = values.shape[1:]
    for shape in (bound.shape for bound in bounds or () if isinstance(bound, Tensor)):
        try:
            fits = torch.broadcast_shapes(shape, sample) == sample
        except RuntimeError:
            fits = False
        if not fits:
            raise BilevelError(
                f"a bound is of shape {tuple(shape)} and a sample of {tuple(sample)}: bounds "
                "broadcast over each sample; give one value per feature, (F,), or (C, 1, 1) of "
                "channels"
            )
