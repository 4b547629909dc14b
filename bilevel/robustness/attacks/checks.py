"""Checks of what an attack is given, for mistakes that its images would not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError, NonFiniteError, describe
from bilevel.robustness.attacks.samples import check_classes
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.checks import check_within
from bilevel.robustness.threats.losses import Targeted
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.robustness.threats.threat import Threat
from bilevel.solvers import Solution
from bilevel.solvers.selection import select
from bilevel.tree import leaves, leaves_like


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
    if not isinstance(follower, Perturbation) or follower.bounds is None:
        return
    kind = type(follower)
    if kind.check is not Perturbation.check and kind.project is Perturbation.project:
        check_within(batch.x, follower.bounds)


def part_of(batch: Any) -> Any:
    """The first of several samples, as a batch.

    Args:
        batch: The samples.

    Returns:
        The batch; None of a single sample, or if there is no row per sample in all fields.
    """
    labels = batch.y
    if not isinstance(labels, Tensor) or labels.dim() == 0 or len(labels) < 2:
        return None
    try:
        return select(batch, torch.arange(len(labels), device="cpu") == 0)
    except BilevelError:
        return None


def check_separate(follower: Threat, solution: Solution, other: Any) -> None:
    """Checks that answers do not depend on how images are divided into batches.

    Args:
        follower: The threat model.
        solution: The answer to a batch.
        other: A batch of another number of images; None if there is none, and nothing to check.

    Raises:
        BilevelError: If the images share one y, which the solver has searched for their batch.
    """
    if other is None or not solution.evaluations:
        return
    found = leaves(solution.value)
    device = found[0].device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        start = leaves_like(follower.init(other), like=solution.value)
    if any(leaf.shape == own.shape for leaf, own in zip(found, start, strict=True)):
        raise BilevelError(
            f"the images of a batch share one y of {type(follower).__name__}, which the solver "
            "would compute anew for each batch: the accuracy would depend on batch_size; train "
            "Parametric(y) in a game with leader_opt=None first, and give it as the solver"
        )
