"""The place that keeps the promise "solving the follower leaves the leader as it was"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

Mode = Literal["eval", "train"]
"""How a frozen module computes: as deployed, or as in training but with its statistics kept."""


@contextmanager
def frozen(module: nn.Module, mode: Mode = "eval") -> Iterator[None]:
    """Within the block ``module`` computes in ``mode`` and nothing it does to itself lasts.

    Parameters ask for no gradient (so a backward pass through the module never computes weight
    gradients), buffers are stand-ins (so BatchNorm in ``"train"`` mode normalises by the batch and
    its running statistics stay), and every training flag comes back at the end.

    Args:
        module: The leader while the follower is solved, or the solver while the leader moves.
        mode: ``"eval"`` or ``"train"``.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen(norm, "train"):
        ...     _ = norm(torch.randn(8, 2))
        >>> norm.num_batches_tracked.item(), norm.weight.requires_grad
        (0, True)
    """
    modules = list(module.modules())
    flags = [part.training for part in modules]
    trainable = [p for p in module.parameters() if p.requires_grad]
    buffers = [(part, *item) for part in modules for item in part.named_buffers(recurse=False)]
    try:
        module.train(mode == "train")
        for parameter in trainable:
            parameter.requires_grad_(False)
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer.clone())
        yield
    finally:
        for part, flag in zip(modules, flags, strict=True):
            part.training = flag
        for parameter in trainable:
            parameter.requires_grad_(True)
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)
