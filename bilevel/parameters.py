"""Calling functions of a module while it has other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

_T = TypeVar("_T")
Parameters = dict[str, Tensor]
"""A module's parameters, by name."""


class _Holder(nn.Module):
    """Makes any function of a module a module, which ``functional_call`` asks for."""

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
        given: The parameters, by name; those that are missing are its own.
        function: What to call.

    Returns:
        What it returned.
    """
    held = {f"module.{name}": parameter for name, parameter in given.items()}
    result: _T = functional_call(_Holder(module, function), held)
    return result
