"""Checks of what an attack is given, for mistakes that its images would not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel import Parametric, Solver
from bilevel.errors import BilevelError, NonFiniteError, describe
from bilevel.robustness.attacks.samples import check_classes
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.losses import Targeted
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.robustness.threats.threat import Threat
from bilevel.tree import leaves


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
    """Checks that δ = 0 lies in the threat model, if its check of the data is one's own.

    Args:
        follower: The threat model.
        batch: Clean data.

    Raises:
        BilevelError: If it does not, as where data lie outside the bounds.
    """
    if not isinstance(follower, Perturbation) or type(follower).check is Perturbation.check:
        return
    moved = follower.project(torch.zeros_like(batch.x), batch).abs()
    if moved.any():
        raise BilevelError(
            f"{type(follower).__name__}.project moves δ = 0 by {moved.max():.3g}: the clean data "
            "lie outside the threat model's bounds, [0, 1] unless given; give it the "
            "bounds=(low, high) of the data, or bounds=None"
        )


def check_separate(follower: Threat, solver: Solver, batch: Batch) -> None:
    """Checks that answers do not depend on how images are divided into batches.

    Args:
        follower: The threat model.
        solver: The attack.
        batch: Two images or more; a single one has a y of its own anyway.

    Raises:
        BilevelError: If the images share one y, which the solver computes for each batch.
    """
    if isinstance(solver, Parametric):
        return
    device = batch.x.device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        y = follower.init(batch)
    if any(leaf.shape[:1] != batch.x.shape[:1] for leaf in leaves(y)):
        raise BilevelError(
            f"the images of a batch share one y of {type(follower).__name__}, which the solver "
            "would compute anew for each batch: the accuracy would depend on batch_size; train "
            "Parametric(y) in a game with leader_opt=None first, and give it as the solver"
        )
