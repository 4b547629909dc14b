"""The players of a game, leader and solver: modules with an optimizer each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError


class Optimizer(Protocol):
    """An optimizer of ``torch.optim``, or any object with its ``step(closure)``.

    It moves the parameters themselves, without recording gradients: of a move through ``.data``
    torch keeps no count.
    """

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


def has_hooks(player: nn.Module) -> bool:
    """Whether something looks at the gradients of a player's parameters in the backward pass.

    Args:
        player: The module.

    Returns:
        True if a parameter has a hook, such as one that steps an optimizer there.
    """
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in player.parameters())


Evaluate = Callable[[list[Tensor]], Tensor]
"""Computes a loss, fills ``.grad`` of the given trainable parameters, which is None, and returns
the loss."""


def take_step(
    optimizer: Optimizer | None, player: nn.Module, first: Evaluate, again: Evaluate
) -> Tensor:
    """Takes one step of a player's optimizer; without one, only evaluates the loss.

    The loss is evaluated before the step, and the first call of the optimizer's closure returns it
    unless the parameters have moved or lost their gradients. So what reads ``.grad`` before it
    calls the closure sees the gradient of this step, not of the last one: step pre-hooks (gradient
    clipping), sharpness-aware optimizers.

    Args:
        optimizer: The optimizer.
        player: The module whose parameters it moves.
        first: The evaluation before the step.
        again: Any further one.

    Returns:
        The loss before the step.

    Raises:
        BilevelError: If the optimizer does not call the closure.
    """
    parameters = zero_grad(player)
    loss = first(parameters)
    if optimizer is None:
        return loss
    before, unread = _states(parameters), [loss]
    optimizer.step(partial(_uncompiled_closure(), player, parameters, again, before, unread))
    if unread:
        raise BilevelError(
            f"{type(optimizer).__name__}.step did not call its closure, which computes the loss "
            "and gradients: call it, as the optimizers of torch.optim do"
        )
    return loss


def _closure(
    player: nn.Module,
    parameters: list[Tensor],
    again: Evaluate,
    before: list[tuple[int, bool]],
    unread: list[Tensor],
) -> Tensor:
    """The first loss, once and while the parameters are as they were before; else another one."""
    loss = unread.pop() if unread else None
    if loss is None or _states(parameters) != before:
        loss = again(zero_grad(player))
    return loss


@cache
def _uncompiled_closure() -> Callable[..., Tensor]:
    """The closure, called as it is by a compiled optimizer, whose tensors have other versions."""
    # Not on import, which would import the compiler; an optimizer of torch has imported it.
    return torch.compiler.disable(_closure)


def _states(parameters: list[Tensor]) -> list[tuple[int, bool]]:
    """What changes where a parameter moves or loses its gradient."""
    return [(parameter._version, parameter.grad is None) for parameter in parameters]
