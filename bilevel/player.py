"""The players of a game, leader and solver: modules with an optimizer each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


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


def trainable_parameters(*players: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients.

    Args:
        *players: The modules.

    Returns:
        Their parameters, one player's after the other's.
    """
    return [p for player in players for p in player.parameters() if p.requires_grad]


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
