"""The players of a game, leader and solver: modules with an optimizer each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from bilevel.errors import BilevelError


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
    optimizer: Optimizer | None, player: nn.Module, evaluate: Callable[[list[Tensor]], Tensor]
) -> None:
    """Takes one step of a player's optimizer; without one, only evaluates the loss.

    The loss is evaluated before the step, and the first call of the optimizer's closure returns it
    unless the parameters have moved or lost their gradients. So what reads ``.grad`` before it
    calls the closure sees the gradient of this step, not of the last one: step pre-hooks (gradient
    clipping), sharpness-aware optimizers.

    Args:
        optimizer: The optimizer.
        player: The module whose parameters it moves.
        evaluate: Computes the loss, fills ``.grad`` of the given trainable parameters, which is
            None, and returns the loss.

    Raises:
        BilevelError: If the optimizer does not call the closure.
    """
    parameters = zero_grad(player)
    first = [evaluate(parameters)]
    if optimizer is None:
        return
    before = [(parameter._version, parameter.grad is None) for parameter in parameters]

    def closure() -> Tensor:
        now = [(parameter._version, parameter.grad is None) for parameter in parameters]
        loss = first.pop() if first else None
        return loss if loss is not None and now == before else evaluate(zero_grad(player))

    optimizer.step(closure)
    if first:
        raise BilevelError(
            f"{type(optimizer).__name__}.step did not call its closure, which computes the loss "
            "and gradients: call it, as the optimizers of torch.optim do"
        )
