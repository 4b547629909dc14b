"""Sums of gradients and losses over the processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from bilevel.distributed.job import check_joined, translate_errors, world_size
from bilevel.errors import BilevelError


class Pool:
    """Sums over the processes what each computes on its share of a batch.

    A :class:`~bilevel.Bilevel` with such a ``pool`` multiplies its losses by the share and sums the
    gradients before an optimizer reads them: those of θ and of φ. ``DistributedDataParallel``
    around the leader's model averages the gradients of θ alone, which is enough if the solver is
    not trained; the processes' φ would drift apart.

    The game's first solve, which all processes take together, checks that they hold the same
    networks, and that the answers belong to the samples: where the batch shares one y, each process
    would solve the problem of its own share. A shared y that is trained, by
    :class:`~bilevel.Parametric` with :class:`~bilevel.Detached`, is one parameter in all processes.
    Other games that share one y need no pool: :func:`~bilevel.distributed.summed` adds up the
    objective and the leader's loss.

    Attributes:
        share: The number of this process's samples divided by the batch's.

    Raises:
        BilevelError: If the process has not joined the others that were started with it.
    """

    def __init__(self) -> None:
        check_joined()
        self.share = 1 / world_size()

    def all_reduce_gradients(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        """Replaces a loss and gradients by their sums over the processes. Collective.

        A parameter that a process does not use has a zero gradient there. One that no process uses
        keeps none, so that an optimizer leaves it alone.

        Args:
            loss: The loss.
            parameters: The parameters, the same in all processes.

        Raises:
            BilevelError: If a gradient is sparse.
        """
        if any(p.grad is not None and p.grad.is_sparse for p in parameters):
            raise BilevelError(
                "a parameter has a sparse gradient, which is not summed over the processes: build "
                "its embedding with sparse=False"
            )
        users = loss.new_ones(len(parameters))
        unused = [number for number, p in enumerate(parameters) if p.grad is None]
        for number in unused:
            users[number] = 0
            parameters[number].grad = torch.zeros_like(parameters[number])
        self.all_reduce([loss, users, *(p.grad for p in parameters if p.grad is not None)])
        if unused:
            for number, count in enumerate(users.tolist()):
                if not count:
                    parameters[number].grad = None

    def mean(self, shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The means over the samples of all processes. Collective.

        Args:
            shares: The means over this process's samples, by name.

        Returns:
            Those of the batch.
        """
        means = {name: value * self.share for name, value in shares.items()}
        self.all_reduce([*means.values()])
        return means

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over the processes. Collective.

        Args:
            tensors: The tensors, of the same shapes in all processes.
        """
        if world_size() == 1 or not tensors:
            return
        # Under autocast a loss can be less precise than the gradients.
        dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors), dtype=dtype)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        views = [_view_like(piece, tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
        torch._foreach_copy_(views, list(tensors))
        with translate_errors():
            dist.all_reduce(flat)
        torch._foreach_copy_(list(tensors), views)


def _view_like(piece: Tensor, like: Tensor) -> Tensor:
    """A view of contiguous memory with the shape and memory format of another tensor."""
    # Copies between equal memory formats are fast; gradients of channels-last weights have theirs.
    if like.is_contiguous(memory_format=torch.channels_last):
        return piece.as_strided(like.shape, like.stride())
    return piece.view(like.shape)
