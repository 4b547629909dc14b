"""The place that keeps the promise "solving the follower leaves the leader as it was"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from bilevel.replay import Condition

Mode = Literal["eval", "train"]
"""How a frozen module computes: as deployed, or as in training but with its statistics kept."""


@contextmanager
def frozen(
    module: nn.Module, mode: Mode = "eval", *, differentiable: bool = False
) -> Iterator[None]:
    """Within the block ``module`` computes in ``mode`` and nothing it does to itself lasts.

    Parameters ask for no gradient (so a backward pass through the module never computes weight
    gradients), buffers are stand-ins (so BatchNorm in ``"train"`` mode normalises by the batch and
    its running statistics stay), and every training flag comes back at the end.

    Args:
        module: The leader while the follower is solved, or the solver while the leader moves.
        mode: ``"eval"`` or ``"train"``.
        differentiable: Whether the parameters go on asking for the gradients they ask for.

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
    before = Condition(module)
    try:
        module.train(mode == "train")
        if not differentiable:
            for parameter, trained in before.parameters:
                if trained:
                    parameter.requires_grad_(False)
        before.stand_in()
        yield
    finally:
        before.restore()
