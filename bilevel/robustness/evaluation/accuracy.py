"""Accuracy on clean images and under one attack."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bilevel import BilevelError, NonFiniteError, Solver, distributed, frozen, pgm
from bilevel.randomness import random_state_kept
from bilevel.robustness.attacks.attack import attack, for_evaluation
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.data.images import ImageSet, image_set
from bilevel.robustness.evaluation.logits import check_logits
from bilevel.robustness.evaluation.tolerance import share
from bilevel.robustness.threats.threat import Threat


def correct(
    model: nn.Module,
    images: ImageSet,
    follower: Threat | None = None,
    solver: Solver | None = None,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Which images are classified correctly.

    Collective: each process evaluates its share of the images, and all return the whole result.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images.
        follower: The threat model; with ``solver``.
        solver: The attack; None for clean images.
        batch_size: Images a batch.

    Returns:
        ``(N,)`` bool on the device of the images.

    Raises:
        BilevelError: If there are no images, they are no image set, a label is none of the classes,
            only one of follower and solver is given, or the output is not one logit for each class.
        NonFiniteError: If a logit is NaN or infinite.
    """
    if (follower is None) != (solver is None):
        given, missing = ("follower", "solver") if solver is None else ("solver", "follower")
        raise BilevelError(
            f"a {given} is given without a {missing}: an attack needs both; give both, or neither "
            "for clean images"
        )
    image_set("images", images).check()
    own = distributed.shard(len(images))
    part = ImageSet(images.images[own], images.labels[own], images.classes)
    measure = partial(_correct_own, model, part, follower, solver, batch_size)
    gathered = distributed.gather_results(measure)
    if not all(all_finite for _, all_finite in gathered):
        raise NonFiniteError(
            "the classifier's logits are not finite: training has diverged or the images are not "
            "finite; lower the learning rate, or go back to the last checkpoint"
        )
    return torch.cat([rows for rows, _ in gathered]).to(images.labels.device)


def _correct_own(
    model: nn.Module,
    images: ImageSet,
    follower: Threat | None,
    solver: Solver | None,
    batch_size: int,
) -> tuple[Tensor, bool]:
    """Which images are classified correctly in this process, and whether logits are finite."""
    right, finite = [images.labels.new_empty(0, dtype=torch.bool)], []
    kept = solver and solver.kept
    with torch.no_grad(), frozen(model):
        for number, batch in enumerate(batches(images, batch_size)):
            if follower is not None and solver is not None:
                if number == 0:  # a loss would raise anything, on a GPU an assertion of the device
                    check_logits(model(_start(model, follower, batch)), batch, images.classes)
                solver.kept = kept  # a warm start would go on from the last batch's images
                batch = attack(model, follower, solver, batch)
            logits = check_logits(model(batch.x), batch, images.classes)
            right.append(logits.argmax(1) == batch.y)
            finite.append(logits.isfinite().all())
    return torch.cat(right).cpu(), all(map(bool, finite))


def _start(model: nn.Module, follower: Threat, batch: Batch) -> Tensor:
    """Where an attack starts: a threat model may change the size of images."""
    with random_state_kept(batch.x.device):
        return attack(model, follower, pgm(1.0, 0), batch).x


def accuracy(
    model: nn.Module,
    images: ImageSet,
    follower: Threat | None = None,
    solver: Solver | None = None,
    *,
    batch_size: int = 256,
) -> float:
    """The share of images that are classified correctly, see :func:`correct`.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images.
        follower: The threat model; with ``solver``.
        solver: The attack; None for clean accuracy.
        batch_size: Images a batch.

    Returns:
        A number in [0, 1].
    """
    solver = solver and for_evaluation(solver)
    return share(correct(model, images, follower, solver, batch_size=batch_size))
