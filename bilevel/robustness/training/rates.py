"""The learning rates of an optimizer's parameter groups in the course of a run."""

from __future__ import annotations

import torch


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's learning rate to a multiple of the one that it was made with.

    Args:
        optimizer: The optimizer; a group's initial rate is kept as ``"initial_lr"``, the key of
            torch's schedulers, which its state holds, too.
        factor: The multiple.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> scale_rates(optimizer, 0.1)
        >>> scale_rates(optimizer, 0.2)
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
