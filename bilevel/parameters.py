"""Calls a function while a module has other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

_T = TypeVar("_T")
Parameters = dict[str, Tensor]
"""A module's parameters, by name."""


class _Forward(nn.Module):
    """Makes a function the ``forward`` of a module, for ``functional_call``."""

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Any:
        return self.function()


def with_parameters(module: nn.Module, given: Parameters, function: Callable[[], _T]) -> _T:
    """Calls a function while a module has other parameters.

    Args:
        module: The module.
        given: The parameters, by name; those that are missing are the module's own.
        function: The function to call.

    Returns:
        What the function returned.
    """
    prefixed = {f"module.{name}": parameter for name, parameter in given.items()}
    result: _T = functional_call(_Forward(module, function), prefixed)
    return result
