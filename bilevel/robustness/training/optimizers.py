"""The optimizers of a training run: their settings, and the learning rates of the recipe."""

from __future__ import annotations

from typing import Any

import torch

from bilevel.experiment.settings import shown

# Left out of a group: its parameters, its learning rates, which are added apart, and the choice of
# kernels, which differs between devices.
_LEFT_OUT = {"params", "lr", "initial_lr", "fused", "foreach", "capturable"}


def optimizer_settings(optimizer: Any) -> str:
    """The settings that an optimizer would silently take over with the state of a checkpoint.

    Args:
        optimizer: One of ``torch.optim``, another with ``step``, or None.

    Returns:
        Its class, and each group's settings with the learning rate that it was made with.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer_settings(torch.optim.SGD([weight], lr=0.1))[:40]
        'SGD((momentum: 0, dampening: 0, weight_d'
    """
    groups = [
        {name: value for name, value in group.items() if name not in _LEFT_OUT}
        | {"lr": group.get("initial_lr", group.get("lr"))}
        for group in getattr(optimizer, "param_groups", [])
    ]
    return f"{type(optimizer).__name__}{shown(groups)}"


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's learning rate to a multiple of the one that it was made with.

    Args:
        optimizer: The optimizer.
        factor: The multiple.
    """
    for group in optimizer.param_groups:  # kept under the key of torch's schedulers
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
