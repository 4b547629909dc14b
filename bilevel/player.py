"""The players of a game, leader and solver: modules with an optimizer each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

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
        closure()
    elif _has_pre_hooks(optimizer):
        # Such a hook runs before the closure is called; it must see this step's gradient, not the
        # last one's (gradient clipping).
        optimizer.step(_evaluated(closure, trainable_parameters(player)))
    else:
        optimizer.step(closure)


def _has_pre_hooks(optimizer: object) -> bool:
    """Whether an optimizer has step pre-hooks, or one that it wraps as its ``optimizer``."""
    while optimizer is not None and not getattr(optimizer, "_optimizer_step_pre_hooks", None):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer is not None or bool(_global_optimizer_pre_hooks)


def _evaluated(closure: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Callable[[], Tensor]:
    """Evaluates the closure now; its first call returns that loss, unless parameters moved."""
    losses = [closure()]
    versions = [parameter._version for parameter in parameters]

    def again() -> Tensor:
        if losses and versions == [parameter._version for parameter in parameters]:
            return losses.pop()
        if losses:
            losses.clear()
            warnings.warn(
                "the optimizer moves the parameters before it evaluates the loss: its step "
                "pre-hooks saw another gradient than that of its step; clip gradients elsewhere, "
                "such as in a subclass of the optimizer",
                stacklevel=2,
            )
        return closure()

    return again
