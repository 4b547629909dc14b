"""Adding up over processes what each finds on its share of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from bilevel.distributed.job import translate_errors, world_size


class Pool:
    """Adds up over the processes what each finds on its share of a batch.

    A :class:`~bilevel.Bilevel` with such a ``pool`` multiplies its losses by the share and adds up
    the gradients before an optimizer reads them. Not ``DistributedDataParallel``: it knows one
    forward and one backward pass of one module, where a step here takes gradients of the input in
    between, trains two networks by one backward pass and may repeat either for its schedule.

    Attributes:
        share: This process's images divided by the batch's.
    """

    def __init__(self) -> None:
        self.share = 1 / world_size()

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over the processes. Collective.

        Args:
            tensors: Of the same shapes everywhere.
        """
        flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors))
        pieces = flat.split([tensor.numel() for tensor in tensors])
        places = [_laid_out(piece, tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
        torch._foreach_copy_(places, list(tensors))
        with translate_errors():
            dist.all_reduce(flat)
        torch._foreach_copy_(list(tensors), places)


def _laid_out(piece: Tensor, like: Tensor) -> Tensor:
    """A piece of memory as a tensor whose numbers lie in the order of another's."""
    # So that copies need not gather: gradients of channels-last weights are channels last.
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return piece.as_strided(like.shape, like.stride())
    return piece.view(like.shape)
