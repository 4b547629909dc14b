"""Helpers that the attacks share: operations sample by sample, and checks."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bilevel.errors import BilevelError, describe
from bilevel.robustness.data.batches import Batch, per_sample
from bilevel.robustness.threats.bounds import clipped, interval, rounding
from bilevel.robustness.threats.losses import Targeted
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.solvers import Oracle

Tensors = TypeVar("Tensors", bound=NamedTuple)
"""A named tuple of tensors with a row per sample."""


def choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``torch.where`` with one condition a sample; it does not wait for the device.

    Args:
        mask: Which samples are taken from ``yes``, ``(B,)`` bool.
        yes: ``(B, ...)``.
        no: ``(B, ...)``.

    Returns:
        ``(B, ...)``.

    Example:
        >>> choose(torch.tensor([True, False]), torch.ones(2, 3), torch.zeros(2, 3))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """
    return torch.where(per_sample(mask, yes), yes, no)


def choose_all(mask: Tensor, yes: Tensors, no: Tensors) -> Tensors:
    """:func:`choose` for each tensor of two named tuples."""
    return type(yes)._make(choose(mask, one, other) for one, other in zip(yes, no, strict=True))


def better(oracle: Oracle, point: Tensor, best: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the one of two points with the larger gain.

    Args:
        oracle: The problem.
        point: A new point, ``(B, ...)``; its gain is evaluated.
        best: The point so far, ``(B, ...)``.
        gain: Its gain, ``(B,)``.

    Returns:
        The better points and their gains; ``best`` where they are equal.
    """
    value = oracle.gain(point)
    improves = value > gain
    return choose(improves, point, best), choose(improves, value, gain)


def check_gain(gain: Tensor, y: Tensor, batch: Any) -> None:
    """Checks that each image has a gain of its own, by which points are compared.

    Args:
        gain: The gain at a point.
        y: The point.
        batch: The images.

    Raises:
        BilevelError: If the gain is one number for images that have a y each.
    """
    images = getattr(batch, "x", ())  # of a follower of one's own the batch may be anything
    if gain.dim() == 0 and y.dim() and len(y) == len(images) > 1:
        raise BilevelError(
            f"the objective is one number for {len(y)} images: of two points the better one would "
            "be kept for all images at once; let the loss return one value per image, (B,), "
            'reduction="none", and of pixels the mean over each image'
        )


def replaced(batch: Any, **fields: Tensor) -> Any:
    """A batch with other values in some fields.

    Args:
        batch: A named tuple; of another type only the images and labels are kept.
        **fields: The fields; those that it lacks are added.

    Returns:
        A named tuple, of the same type if no field is added, and :class:`Targeted` if targets are
        added to a :class:`Batch`.

    Example:
        >>> replaced(Batch(torch.zeros(1), torch.ones(1)), target=torch.ones(1))._fields
        ('x', 'y', 'target')
    """
    if not hasattr(batch, "_fields"):
        batch = Batch(batch.x, batch.y)
    if fields.keys() <= set(batch._fields):
        return batch._replace(**fields)
    if type(batch) is Batch and fields.keys() == {"target"}:
        return Targeted(*batch, **fields)
    values = batch._asdict() | fields
    return namedtuple(type(batch).__name__, values)(**values)


def check_classes(batch: Batch | Targeted, otherwise: str) -> None:
    """Checks that the labels are a class for each image.

    Args:
        batch: The images.
        otherwise: What helps too if they are not, the last clause of the error.

    Raises:
        BilevelError: If they are not int64 of shape (B,).
    """
    labels: object = batch.y  # of another task anything, such as a list of boxes
    size = len(batch.x)
    if isinstance(labels, Tensor):
        if labels.dtype == torch.int64 and labels.shape == (size,):
            return
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
    else:
        found = describe(labels)
    raise BilevelError(
        f"labels are {found}: each image has one class; give int64 of shape ({size},), or "
        f"{otherwise}"
    )


def check_threat(clean: Tensor, adversarial: Tensor, threat: Perturbation) -> None:
    """Checks that adversarial images lie in the ball around the clean ones and within its bounds.

    Args:
        clean: ``(B, C, H, W)`` within the bounds.
        adversarial: What an attack returned for them.
        threat: The ball.

    Raises:
        BilevelError: If an image lies outside by more than rounding, or a pixel is NaN.
    """
    slack, delta = rounding(clean), adversarial - clean
    norm = threat.norm(delta)
    outside = (adversarial - clipped(adversarial, threat.bounds)).abs()
    # Each pixel may be off by rounding, also where the norm counts pixels.
    least = threat.norm(delta.sign() * (delta.abs() - slack).clamp(min=0))
    if not ((least <= threat.eps * (1 + 1e-6)).all() and (outside <= slack).all()):
        raise BilevelError(
            f"it left the threat model (‖δ‖{threat.index} = {norm.max():.4g} where ε = "
            f"{threat.eps:g}, pixels {outside.max():.2g} outside {interval(threat.bounds)}): give "
            "it the ε of the evaluation"
        )
