"""What a classifier gets right, on clean images and under attack."""

from __future__ import annotations

import torch
from torch import nn

from bilevel import NonFiniteError, Solver, frozen
from bilevel.robustness.attacks.attack import attack
from bilevel.robustness.batches import batches
from bilevel.robustness.data import ImageSet
from bilevel.robustness.threats import Perturbation


def accuracy(
    model: nn.Module,
    images: ImageSet,
    follower: Perturbation | None = None,
    solver: Solver | None = None,
    *,
    batch_size: int = 256,
) -> float:
    """The share of images whose largest logit is the right one.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images.
        follower: The threat model; with ``solver``.
        solver: The attack; None for clean accuracy.
        batch_size: Images a batch.

    Returns:
        A number in [0, 1].

    Raises:
        NonFiniteError: If a logit is NaN or infinite: its image is neither right nor wrong.
    """
    right = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    finite = torch.ones((), dtype=torch.bool, device=images.labels.device)
    with torch.no_grad(), frozen(model):
        for batch in batches(images, batch_size):
            if follower is not None and solver is not None:
                batch = attack(model, follower, solver, batch)
            logits = model(batch.x)
            right += (logits.argmax(1) == batch.y).sum()
            finite &= logits.isfinite().all()
    if not finite:
        raise NonFiniteError(
            "the classifier's logits are not finite: training has diverged or the images are not "
            "finite; lower the learning rate, or go back to the last checkpoint"
        )
    return right.item() / len(images)
