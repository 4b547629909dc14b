"""Freezes a module: how a solve leaves the leader bit for bit as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.utils import parametrize

from bilevel.errors import BilevelError
from bilevel.snapshot import ModuleState

Mode = Literal["eval", "train"]
"""The mode of a frozen module. In ``"train"`` its running statistics are still kept, and layers
that are in evaluation mode while others train stay so."""


@contextmanager
def frozen(
    module: nn.Module, mode: Mode = "eval", *, differentiable: bool = False
) -> Iterator[None]:
    """Within the block ``module`` is in ``mode`` and its state is restored afterwards.

    Parameters do not require gradients (a backward pass through the module computes no weight
    gradients), buffers are copies (BatchNorm in ``"train"`` mode normalises by the batch and its
    running statistics stay), and training flags are restored.

    Args:
        module: The leader while the follower is solved, or the solver while the leader moves.
        mode: ``"eval"`` or ``"train"``.
        differentiable: Whether the parameters keep their ``requires_grad``.

    Yields:
        Nothing.

    Raises:
        BilevelError: If a parameter is computed from others, as ``functional_call`` may lend them,
            or a module has no modes, as that of an exported program.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen(norm, "train"):
        ...     _ = norm(torch.randn(8, 2))
        >>> norm.num_batches_tracked.item(), norm.weight.requires_grad
        (0, True)
    """
    before = ModuleState(module)
    parametrize._cache.clear()  # of parametrize.cached(): weights from before the last move
    try:
        if mode == "eval" or not _trains(module):
            _set_mode(module, mode)
        if not differentiable:
            _freeze(before)
        before.use_buffer_copies()
        yield
    finally:
        before.restore()
        parametrize._cache.clear()  # weights without a gradient


def _set_mode(module: nn.Module, mode: Mode) -> None:
    try:
        module.train(mode == "train")
    except NotImplementedError as error:  # of the module of torch.export, and of one that holds it
        raise BilevelError(
            f"the mode of {type(module).__name__} cannot be set ({error}): torch.export fixes it; "
            "give the network that was exported, or torch.export.unflatten(program) of one that "
            "was exported in eval mode"
        ) from error


def _trains(module: nn.Module) -> bool:
    """Whether a layer does: the flag of what holds them says nothing after ``model.eval()``."""
    return any(part.training for part in module.modules() if not part._modules)


def _freeze(state: ModuleState) -> None:
    try:
        for parameter, requires_grad in state.requires_grad:
            if requires_grad:
                parameter.requires_grad_(False)
    except RuntimeError as error:
        raise BilevelError(
            "a parameter is computed from others (functional_call), or many are solved together "
            "(vmap): it cannot be held fixed as a parameter; lend it detached, or take Unrolled(), "
            "which differentiates through it, and under vmap Implicit(), Forward() or Penalty(…)"
        ) from error
