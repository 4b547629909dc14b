"""What moves in a game: a player is a module with an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Optimizer(Protocol):
    """What moves a player: an optimizer of ``torch.optim``, or a method with ``step(closure)``."""

    def step(self, closure: Callable[[], Any]) -> Any:
        """Evaluates ``closure`` (loss and gradients) as often as it needs, and moves.

        Args:
            closure: Computes the loss, fills ``.grad`` and returns the loss.

        Returns:
            Whatever the method returns; it is not read.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers.

        Returns:
            Its state.
        """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Args:
            state_dict: The state.
        """


def trained(*players: nn.Module) -> list[Tensor]:
    """The parameters that ask for a gradient.

    Args:
        *players: The modules.

    Returns:
        Their parameters, one player's after the other's.
    """
    return [p for player in players for p in player.parameters() if p.requires_grad]


def forget_gradients(player: nn.Module) -> list[Tensor]:
    """``player.zero_grad()``, without its overhead.

    Args:
        player: The module.

    Returns:
        The parameters that ask for a gradient.
    """
    asking: list[Tensor] = []
    for parameter in player.parameters():
        parameter.grad = None
        if parameter.requires_grad:
            asking.append(parameter)
    return asking
