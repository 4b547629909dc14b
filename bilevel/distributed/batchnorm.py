"""Batch normalisation over the batches of all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from bilevel.distributed.job import world_size
from bilevel.distributed.pool import Pool
from bilevel.distributed.sharing import replicated, summed
from bilevel.errors import BilevelError

_M = TypeVar("_M", bound=nn.Module)


class SyncBatchNorm(nn.SyncBatchNorm):
    """``nn.SyncBatchNorm``, also on devices other than GPUs.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> type(SyncBatchNorm.convert_sync_batchnorm(network)[1]).__name__
        'SyncBatchNorm'
    """

    momentum: float | None
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    @classmethod
    def convert_sync_batchnorm(cls, module: _M) -> _M:  # type: ignore[override]
        """Converts all batch normalisation layers of a module, in place.

        Args:
            module: The module; its parameters stay the same tensors.

        Returns:
            The module.

        Raises:
            BilevelError: If a layer is of a subclass with a ``forward`` of its own.
        """
        layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        for layer in layers:
            kind = type(layer)
            if kind.forward not in {_BatchNorm.forward, nn.SyncBatchNorm.forward, cls.forward}:
                raise BilevelError(
                    f"{kind.__name__} has a forward of its own, which converting it to "
                    "synchronised batch normalisation would drop; use nn.BatchNorm2d and a module "
                    "after it, or train without synchronised batch normalisation"
                )
        for layer in layers:
            layer.__class__ = cls
            layer.process_group = None  # type: ignore[assignment]
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Normalises by the mean and variance over the batches of all processes.

        Args:
            input: ``(B, C, ...)``.

        Returns:
            The same shape.
        """
        if not self.training or world_size() == 1:
            return _BatchNorm.forward(self, input)
        if input.is_cuda:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.to(torch.promote_types(input.dtype, torch.float32))  # bfloat16 sums are too rough
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = replicated(summed(torch.cat([x.sum(dims), count])))
        total, count = sums.tensor_split([-1])
        mean = total / count
        centred = x - mean.view(shape)
        var = replicated(summed(centred.square().sum(dims))) / count
        if self.running_mean is not None:
            self._update_statistics(mean.detach(), (var * count / (count - 1)).detach())
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _update_statistics(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        # Without a momentum the statistics are averages over all batches.
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(var.to(self.running_var), momentum)


def average_statistics(pool: Pool, networks: Sequence[nn.Module]) -> None:
    """Averages running statistics that are not synchronised over the processes. Collective.

    All processes then validate, save and train the same network.

    Args:
        pool: The pool, with the share of this process.
        networks: The networks.
    """
    # Once each: the same network may be the leader's and the follower's.
    modules = dict.fromkeys(module for network in networks for module in network.modules())
    norms = [
        module
        for module in modules
        if isinstance(module, _NormBase) and not isinstance(module, SyncBatchNorm)
    ]
    own = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if own:
        torch._foreach_mul_(own, pool.share)
        pool.all_reduce(own)
