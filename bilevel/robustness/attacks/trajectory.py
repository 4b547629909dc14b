"""The points at which an attack queries the classifier: one that is misclassified breaks its image.

An attack ascends a loss but is judged by the predicted class: the point of highest cross entropy
may be classified correctly where an earlier one was not. The code of Auto-PGD's authors keeps such
points too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.robustness.attacks.samples import check_classes, choose
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.bounds import rounding
from bilevel.robustness.threats.losses import Targeted
from bilevel.robustness.threats.perturbation import Perturbation


@contextmanager
def recorded(
    model: nn.Module, follower: Perturbation, batch: Batch | Targeted
) -> Iterator[Trajectory]:
    """Within the block, the misclassified points among the classifier's inputs are recorded.

    Args:
        model: The classifier that is attacked.
        follower: The threat model, which adds y to the image.
        batch: Clean images.

    Yields:
        The record; it stays empty for a ``ScriptModule``, which takes no hooks.
    """
    trajectory = Trajectory(follower, batch)
    if isinstance(model, torch.jit.ScriptModule):
        yield trajectory
        return
    handle = model.register_forward_hook(trajectory.record)
    try:
        yield trajectory
    finally:
        handle.remove()


class Trajectory:
    """For each image the first queried point inside the threat model that is misclassified.

    Args:
        follower: The threat model.
        batch: Clean images.

    Raises:
        BilevelError: If the labels are no classes.
    """

    def __init__(self, follower: Perturbation, batch: Batch | Targeted) -> None:
        check_classes(batch, "leave keep_broken out, which asks for misclassified images")
        self._follower = follower
        self._batch: Any = batch
        self._images = batch.x
        self._broken = torch.zeros_like(batch.y, dtype=torch.bool)

    @torch.no_grad()
    def record(self, model: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        """A forward hook of the classifier.

        Args:
            model: The classifier.
            inputs: The images of this forward pass.
            logits: Its output.
        """
        (images,), batch = inputs, self._batch
        # A solver may query a part of the batch, or in training mode: these passes do not count.
        if images.shape != batch.x.shape or model.training:
            return
        delta = images - batch.x
        outside = (self._follower.project(delta, batch) - delta).abs() - rounding(batch.x)
        wrong = (logits.argmax(1) != batch.y) & (outside.flatten(1).amax(1) <= 0)
        self._images = choose(wrong & ~self._broken, images, self._images)
        self._broken |= wrong

    def broken_or(self, answer: Tensor) -> Tensor:
        """The recorded points.

        Args:
            answer: The attack's last point, ``(B, C, H, W)``.

        Returns:
            For each image the first point that broke it, or the last point if none did.
        """
        return choose(self._broken, self._images, answer)
