"""A classifier with the images that it is probed on, and the passes that several probes share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.logits import logits_of
from bilevel.robustness.evaluation.tolerance import share


@dataclass(frozen=True)
class Probed:
    """What a probe examines.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Example:
        >>> images = ImageSet(torch.zeros(2, 1, 1, 3).byte(), torch.arange(2), "abc")
        >>> Probed(nn.Flatten(), images).logits.shape
        torch.Size([2, 3])
    """

    model: nn.Module
    images: ImageSet
    batch_size: int = 256

    @cached_property
    def logits(self) -> Tensor:
        """The logits of one pass, ``(N, K)``, finite or not."""
        return logits_of(self.model, self.images, batch_size=self.batch_size)

    @cached_property
    def change_on_repeat(self) -> tuple[float, float]:
        """The largest :func:`change` in three repeated passes."""
        again = (logits_of(self.model, self.images, batch_size=self.batch_size) for _ in range(3))
        labels, logits = zip(*(change(self.logits, other) for other in again), strict=True)
        return max(labels), max(logits)


def change(first: Tensor, second: Tensor) -> tuple[float, float]:
    """How much the logits of the same images differ.

    Args:
        first: ``(N, K)``.
        second: Likewise.

    Returns:
        The share of changed predictions, and the largest change of a logit over their spread.
    """
    labels = share(first.argmax(1) != second.argmax(1))
    spread = (first.amax(1) - first.amin(1)).median().clamp(min=torch.finfo(first.dtype).tiny)
    return labels, ((first - second).abs().max() / spread).item()
