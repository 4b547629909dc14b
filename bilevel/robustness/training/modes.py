"""The mode, training or evaluation, of each part of a network while it is trained."""

from __future__ import annotations

from torch import nn


def set_training(module: nn.Module) -> None:
    """Sets training mode, except in frozen parts that the user has set to eval mode.

    These may be the BatchNorm layers of a pretrained network, whose statistics must not change.

    Args:
        module: The network.
    """
    chosen = module.training  # else no part was set to eval mode by itself
    kept = [part for part in module.modules() if not part.training and _is_frozen(part, chosen)]
    module.train()
    for part in kept:
        part.eval()


def _is_frozen(part: nn.Module, chosen: bool) -> bool:
    """Whether a part in eval mode, which may have been chosen for it alone, is not trained."""
    trained = {parameter.requires_grad for parameter in part.parameters()}
    if not trained:  # statistics alone
        return chosen and any(True for _ in part.buffers())
    return trained == {False}
