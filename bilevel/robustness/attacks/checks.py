"""Checks of what an attack is given and returns, for mistakes that its images would not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError, NonFiniteError, describe
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.bounds import clipped, interval, rounding
from bilevel.robustness.threats.checks import check_within
from bilevel.robustness.threats.losses import Targeted, check_one_each
from bilevel.robustness.threats.perturbation import Perturbation, adds
from bilevel.robustness.threats.threat import Threat


def check_labels(batch: Batch | Targeted, *, classes: bool) -> None:
    """Checks that there are labels.

    Args:
        batch: The images.
        classes: Whether the loss reads classes, which is then checked too.

    Raises:
        BilevelError: If there are none, or they are no classes.
    """
    if not hasattr(batch, "y"):
        raise BilevelError(
            f"the batch is {describe(batch)}: an attack reads images and labels by name; give "
            "robustness.Batch(images, labels)"
        )
    if classes:
        check_classes(batch, "a loss of your own that reads them, Linf(eps, loss=…)")


def check_start(loss: Tensor, classes: Tensor | None) -> None:
    """Checks the loss where an attack starts, and that no class is negative, in one wait.

    Args:
        loss: The loss.
        classes: The labels; None if they are no classes.

    Raises:
        NonFiniteError: If the loss is NaN or infinite.
        BilevelError: If a class is negative.
    """
    finite = loss.isfinite()
    sound = finite if classes is None else finite & (classes >= 0).all()
    if sound:
        return
    if not finite:
        raise NonFiniteError(
            f"the loss is {loss.item()} where the attack starts: it has no gradient to follow, "
            "and its images would look robust; check the classifier's weights and its logits"
        )
    raise BilevelError(
        "labels are negative, which the cross entropy ignores: those images would not be attacked, "
        "and look robust; leave them out"
    )


def check_images(images: Tensor) -> None:
    """Checks that adversarial images are finite, in one wait.

    Args:
        images: The images.

    Raises:
        NonFiniteError: If a pixel is NaN or infinite.
    """
    if not images.isfinite().all():
        raise NonFiniteError(
            "adversarial images are not finite: the loss has a gradient in them that is NaN, or "
            "the attack gave NaN; keep roots, powers, logarithms and norms in the classifier off "
            "0, where their derivatives are infinite"
        )


def check_clean(follower: Threat, batch: Any) -> None:
    """Checks data against the bounds that clip them, where a threat model has a check of its own.

    It may not look at the bounds; :meth:`Perturbation.check` does.

    Args:
        follower: The threat model.
        batch: Clean data.

    Raises:
        BilevelError: If they do not.
        NonFiniteError: If a value is NaN or infinite.
    """
    checked = type(follower).check is Perturbation.check
    if checked or not adds(follower) or follower.bounds is None:
        return
    moved = follower.project(torch.zeros_like(batch.x), batch)
    if (moved.abs() > rounding(batch.x)).any():  # where it does not, the bounds are not in use
        check_within(batch.x, follower.bounds)


def check_classes(batch: Batch | Targeted, otherwise: str) -> None:
    """Checks that the labels are a class for each image.

    Args:
        batch: The images.
        otherwise: What helps too if they are not, the last clause of the error.

    Raises:
        BilevelError: If they are not int64 of shape (B,).
    """
    check_one_each("labels", batch.y, len(batch.x), f"or {otherwise}")


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


def check_threat(clean: Tensor, adversarial: Tensor, threat: Perturbation) -> None:
    """Checks that adversarial images lie in the ball around the clean ones and within its bounds.

    Args:
        clean: ``(B, C, H, W)`` within the bounds.
        adversarial: What an attack returned for them.
        threat: The ball.

    Raises:
        BilevelError: If an image lies outside by more than rounding, a pixel is NaN, or the images
            are of another shape.
    """
    if adversarial.shape != clean.shape:
        raise BilevelError(
            f"adversarial images are of shape {tuple(adversarial.shape)} and clean ones of "
            f"{tuple(clean.shape)}: whether one is in the ball is not defined; keep the size, by "
            "padding for instance, or measure with accuracy(model, images, follower, solver)"
        )
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
