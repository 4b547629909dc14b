"""The players of a game, leader and solver: modules with an optimizer each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_pre_hooks


class Optimizer(Protocol):
    """An optimizer of ``torch.optim``, or any object with its ``step(closure)``."""

    def step(self, closure: Callable[[], Any]) -> Any:
        """Updates the parameters, calling ``closure`` one or more times.

        Args:
            closure: Computes the loss, fills ``.grad`` and returns the loss.

        Returns:
            Anything; it is ignored.
        """

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state.

        Returns:
            The state.
        """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimizer's state.

        Args:
            state_dict: What :meth:`state_dict` returned.
        """


def trainable_parameters(player: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients.

    Args:
        player: The module.

    Returns:
        The parameters.
    """
    return [parameter for parameter in player.parameters() if parameter.requires_grad]


def zero_grad(player: nn.Module) -> list[Tensor]:
    """``player.zero_grad()``, without its overhead.

    Args:
        player: The module.

    Returns:
        The parameters that require gradients.
    """
    trainable: list[Tensor] = []
    for parameter in player.parameters():
        parameter.grad = None
        if parameter.requires_grad:
            trainable.append(parameter)
    return trainable


def take_step(
    optimizer: Optimizer | None, player: nn.Module, closure: Callable[[], Tensor]
) -> None:
    """Takes one step of a player's optimizer; without one, only evaluates the closure.

    Args:
        optimizer: The optimizer.
        player: The module whose parameters it moves.
        closure: Computes the loss, fills ``.grad`` and returns the loss.
    """
    if optimizer is None:
        with torch.enable_grad():
            closure()
    elif getattr(optimizer, "_optimizer_step_pre_hooks", None) or _global_optimizer_pre_hooks:
        # Such a hook runs before the closure is called; it must see this step's gradient, not the
        # last one's (gradient clipping).
        optimizer.step(_evaluated(closure, trainable_parameters(player)))
    else:
        optimizer.step(closure)


def _evaluated(closure: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Callable[[], Tensor]:
    """Evaluates the closure now; its first call returns that loss, unless parameters moved."""
    with torch.enable_grad():
        losses = [closure()]
    versions = [parameter._version for parameter in parameters]

    def again() -> Tensor:
        if losses and versions == [parameter._version for parameter in parameters]:
            return losses.pop()
        return closure()

    return again
