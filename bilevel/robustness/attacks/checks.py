"""Checks of what an attack is given, for mistakes that its images would not show."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bilevel import Iterative, Solver
from bilevel.errors import BilevelError, NonFiniteError, describe
from bilevel.robustness.attacks.apgd import APGD
from bilevel.robustness.attacks.samples import check_classes
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.bounds import rounding
from bilevel.robustness.threats.checks import check_within
from bilevel.robustness.threats.losses import Targeted
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


def check_clean(follower: Threat, batch: Any) -> None:
    """Checks that data lie within the bounds they are clipped to, if a threat model's check is own.

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


def check_restarts(follower: Threat, solver: Solver, restarts: int) -> None:
    """Warns of several tries that all begin at the image, and so end at the same point.

    No error, since a classifier that draws at random gives each try another gradient.

    Args:
        follower: The threat model.
        solver: The attack.
        restarts: The number of tries.
    """
    if not isinstance(follower, Perturbation) or type(follower).init is not Perturbation.init:
        return
    if restarts == 1 or follower.start or type(solver) not in (Iterative, APGD):
        return
    name = type(follower).__name__
    warnings.warn(
        f"restarts is {restarts} and {name} starts at the image: of a classifier that does not "
        f"draw at random all tries are the same; give a random start, {name}(eps, start=eps)",
        stacklevel=3,
    )
