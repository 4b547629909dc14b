"""The points that an attack comes by: an image that one of them breaks is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bilevel.robustness.attacks.samples import choose
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.losses import Targeted
from bilevel.robustness.threats.perturbation import Perturbation

_ROUNDING = 1e-6  # by which float32 may leave the threat model


@contextmanager
def watched(
    model: nn.Module, follower: Perturbation, batch: Batch | Targeted
) -> Iterator[Trajectory]:
    """Notes what a classifier is asked while an attack looks for an answer.

    Args:
        model: The classifier that is attacked.
        follower: The threat model.
        batch: Clean images.

    Yields:
        What has been noted.
    """
    trajectory = Trajectory(follower, batch)
    if isinstance(model, torch.jit.ScriptModule):  # takes no hooks: where an attack ends counts
        yield trajectory
        return
    handle = model.register_forward_hook(trajectory.note)
    try:
        yield trajectory
    finally:
        handle.remove()


class Trajectory:
    """The first point of each image's way that the classifier gets wrong.

    An attack raises a loss and is judged by the classifier's answer, and the two are not the same:
    the highest cross entropy of a way may be classified rightly where a lower one was not. The
    authors of Auto-PGD keep such points too.

    Args:
        follower: The threat model, which points must keep to.
        batch: Clean images.
    """

    def __init__(self, follower: Perturbation, batch: Batch | Targeted) -> None:
        self._follower = follower
        self._batch = Batch(batch.x, batch.y)
        self._images = batch.x
        self._broken = torch.zeros_like(batch.y, dtype=torch.bool)

    @torch.no_grad()
    def note(self, model: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        """A forward hook of the classifier.

        Args:
            model: The classifier.
            inputs: The images that it was asked about.
            logits: What it answered.
        """
        (images,), batch = inputs, self._batch
        # A solver may go on with some of the images, and may ask for answers of training mode.
        if images.shape != batch.x.shape or model.training:
            return
        delta = images - batch.x
        outside = (self._follower.project(delta, batch) - delta).abs().flatten(1).amax(1)
        wrong = (logits.argmax(1) != batch.y) & (outside <= _ROUNDING)
        self._images = choose(wrong & ~self._broken, images, self._images)
        self._broken |= wrong

    def broken_or(self, answer: Tensor) -> Tensor:
        """The noted points.

        Args:
            answer: Where the attack ended, ``(B, C, H, W)``.

        Returns:
            For each image the first point that broke it, or the answer where none did.
        """
        return choose(self._broken, self._images, answer)
