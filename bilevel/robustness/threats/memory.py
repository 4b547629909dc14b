"""Perturbations that start where the last attack on the same image has ended.

A few steps in each epoch then come as far as many: "Efficient adversarial training with
transferable adversarial examples" (ATTA; Zheng et al., 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel.distributed import Pool
from bilevel.robustness.data.augment import Augment
from bilevel.robustness.data.batches import TrackedBatch, per_sample
from bilevel.robustness.data.images import ImageSet


class Memory(nn.Module):
    """The last perturbation of each training image, put back to where its crop was taken from.

    Kept in half precision: two bytes a value, 276 MB for CIFAR-10. What a crop does not show stays
    as it was; what lies outside of the image is not kept.

    Args:
        images: The training images, on the device that trains.
        augment: How batches of them are augmented; None if they are not.

    Example:
        >>> images = ImageSet(torch.zeros(5, 1, 2, 2).byte(), torch.zeros(5).long(), ("zero",))
        >>> fourth = torch.tensor([3])
        >>> batch = TrackedBatch(torch.zeros(1, 1, 2, 2), torch.tensor([0]), fourth, None)
        >>> memory = Memory(images, None)
        >>> memory.write(torch.ones(1, 1, 2, 2), batch)
        >>> memory.read(batch).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """

    answers: Tensor
    written: Tensor

    def __init__(self, images: ImageSet, augment: Augment | None) -> None:
        super().__init__()
        self.augment = augment
        shape, place = images.images.shape, images.images.device
        self.register_buffer("answers", torch.zeros(shape, dtype=torch.half, device=place))
        # Which rows this process has written since the last merge; a checkpoint follows one.
        written = torch.zeros(len(images), dtype=torch.half, device=place)
        self.register_buffer("written", written, persistent=False)

    def read(self, batch: TrackedBatch) -> Tensor:
        """The last perturbations of a batch's images, cropped and flipped as these are.

        Args:
            batch: The images.

        Returns:
            ``(B, C, H, W)``, of the type of the images; 0 where there is none.
        """
        answers = self.answers.index_select(0, batch.rows)
        if self.augment is not None and batch.drawn is not None:
            answers = self.augment(answers, batch.drawn)
        return answers.to(batch.x.dtype)

    def write(self, delta: Tensor, batch: TrackedBatch) -> None:
        """Keeps the perturbations of a batch's images.

        Args:
            delta: ``(B, C, H, W)``.
            batch: The images.
        """
        answers = delta.to(self.answers.dtype)
        if self.augment is not None and batch.drawn is not None:
            before = self.answers.index_select(0, batch.rows)
            answers = self.augment.undo(answers, batch.drawn, before)
        self.answers.index_copy_(0, batch.rows, answers)
        self.written.index_fill_(0, batch.rows, 1)

    def merge(self, pool: Pool) -> None:
        """Gives each process what the others have written since the last time. Collective.

        Args:
            pool: Of the processes, which have written different rows, or the same values.
        """
        answers = self.answers * per_sample(self.written, self.answers)
        pool.all_reduce([answers, self.written])
        count = per_sample(self.written, answers)
        self.answers.copy_(torch.where(count > 0, answers / count.clamp(min=1), self.answers))
        self.written.zero_()

    def extra_repr(self) -> str:
        """The shape of what is kept."""
        return str(tuple(self.answers.shape))
