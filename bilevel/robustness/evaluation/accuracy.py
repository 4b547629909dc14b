"""Accuracy on clean images and under one attack."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bilevel import BilevelError, NonFiniteError, Solver, distributed, frozen, pgm
from bilevel.errors import describe
from bilevel.randomness import random_state_kept
from bilevel.robustness.attacks.attack import attack, for_evaluation
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.data.images import ImageSet, image_set
from bilevel.robustness.evaluation.results import Example
from bilevel.robustness.evaluation.tolerance import share
from bilevel.robustness.networks.failures import explain_misfit
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


def examples(
    title: str,
    model: nn.Module,
    follower: Threat,
    solver: Solver,
    batch: Batch,
    classes: Sequence[str],
) -> list[Example]:
    """Attacks a few images, and keeps them with the classifier's predictions.

    Args:
        title: The name of the attack or of the training method.
        model: The classifier, left as it was.
        follower: The threat model.
        solver: The attack.
        batch: The images.
        classes: The names of the classes.

    Returns:
        One example an image.
    """
    adversarial = attack(model, follower, for_evaluation(solver), batch).x
    with torch.no_grad(), frozen(model):
        predicted = model(adversarial.clone()).argmax(1)  # it may normalise them in place
    return [
        Example(title, clean.cpu(), moved.cpu(), classes[label], classes[prediction])
        for clean, moved, label, prediction in zip(
            batch.x, adversarial, batch.y.tolist(), predicted.tolist(), strict=True
        )
    ]
