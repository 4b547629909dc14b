"""Compiled networks, which compute the same but for rounding, and in less time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bilevel.robustness.networks.classifier import Classifier


def compile_network(network: nn.Module) -> None:
    """Compiles a network in place; where that fails it computes as before, and says so once.

    Of the kit's classifiers the trunk is compiled, so that its features are too. Copies
    (``copy.deepcopy``, averaged weights) are not compiled.

    Args:
        network: The network.
    """
    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    # A network computes in training, in evaluation and with or without gradients of weights and of
    # images, each with the sizes of batches that occur, and a process may compile several networks:
    # more graphs than torch expects. Beyond the limit it would leave out compilation in silence.
    dynamo.recompile_limit = max(256, dynamo.recompile_limit)
    # An answer's history serves one player's backward pass after the other's.
    functorch.donated_buffer = False
    # The backward graph with the forward one, where a failure can still be mended, not as late as
    # in the first backward pass.
    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        functorch.force_non_lazy_backward_lowering = True
    part = _compiled_part(network)
    part._compiled_call_impl = _Compiled(part._call_impl)


def is_compiled(network: nn.Module) -> bool:
    """Whether :func:`compile_network` was called, and nothing has failed since.

    Args:
        network: The network.

    Returns:
        False for a network that computes as it is written.

    Example:
        >>> is_compiled(nn.Linear(1, 1))
        False
    """
    call = _compiled_part(network)._compiled_call_impl
    return isinstance(call, _Compiled) and call.compiled is not None


def _compiled_part(network: nn.Module) -> nn.Module:
    return network.trunk if isinstance(network, Classifier) else network


class _Compiled:
    """A compiled function, or the function itself from the first failure on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.eager = function
        # A graph for each size of batch, the epoch's last one too: one that took any size would be
        # slower, and once compiled be taken for all sizes.
        self.compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled is not None:
            try:
                return self.compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.compiled = None
                reason = " ".join(str(error).split())[:120]
                warnings.warn(f"not compiled, and slower for it: {reason}", stacklevel=2)
        return self.eager(*args, **kwargs)
