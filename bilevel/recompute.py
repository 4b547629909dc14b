"""Activation checkpointing: of layers, and of the steps of a solve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bilevel.autograd_graph import check_not_held, vjp
from bilevel.containers import partition
from bilevel.errors import BilevelError
from bilevel.parameters import lent
from bilevel.snapshot import ModuleState, Snapshot
from bilevel.tree import Value
from bilevel.updates.base import State

Steps = Callable[[Value, State], tuple[Value, State]]

_COMPILES = torch.__version__ >= "2.9"
"""Before, layers that were compiled with their recomputation updated running statistics twice."""


def kept(module: nn.Module) -> Callable[[], tuple[Any, Any]]:
    """A ``context_fn`` of ``torch.utils.checkpoint``: layers are computed again as they were first.

    The backward pass of an adjoint runs after the solve, when the leader is in its own mode again
    and a network of ``functional_call`` has its own weights back. Without this, layers that compute
    again do so there: the gradient is another one, without an error, and running statistics move.

    Args:
        module: The network, or the part of it that is computed again.

    Returns:
        For ``checkpoint(layers, …, use_reentrant=False, context_fn=kept(layers))``, and for
        ``activation_checkpointing_enable({"use_reentrant": False, "context_fn": kept(network)})``
        of transformers.

    Example:
        >>> net = nn.Sequential(nn.Tanh(), nn.Linear(2, 2))
        >>> x = torch.rand(1, 2, requires_grad=True)
        >>> checkpoint(net, x, use_reentrant=False, context_fn=kept(net)).sum().backward()
    """
    return lambda: (nullcontext(), ModuleState(module))


def checkpointed(layers: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``layers(*args, **kwargs)``, of which only the arguments are saved for the backward pass.

    The backward pass computes the layers again. Under ``torch.func``, which does not support that,
    and in compiled networks before torch 2.9, everything is saved.

    Args:
        layers: The layers; running statistics are updated once, by the first computation.
        *args: Their arguments.
        **kwargs: Likewise.

    Returns:
        Their output.

    Example:
        >>> layers = nn.Sequential(nn.Tanh(), nn.Linear(2, 2))
        >>> checkpointed(layers, torch.rand(1, 2, requires_grad=True)).sum().backward()
    """
    compiling = torch.compiler.is_compiling()
    transformed = torch._C._are_functorch_transforms_active()
    if not torch.is_grad_enabled() or transformed or (compiling and not _COMPILES):
        return layers(*args, **kwargs)
    if compiling:  # traced once, in the mode that it is called in
        return checkpoint(partial(layers, **kwargs), *args, use_reentrant=False)
    run = partial(layers, **kwargs)  # checkpoint has arguments of its own
    return checkpoint(run, *args, use_reentrant=False, context_fn=kept(layers))


def recomputed(
    steps: Steps,
    modules: Sequence[nn.Module],
    before: Snapshot,
    y: Value,
    state: State,
    *,
    check: Callable[[Sequence[Tensor]], None] | None = None,
) -> Any:
    """``steps(y, state)``, of which only the arguments are saved for the backward pass.

    ``torch.utils.checkpoint`` cannot be used: each gradient taken inside the steps is a backward
    pass, which would trigger the recomputation before the steps have been computed once.

    Args:
        steps: Some steps of a solve.
        modules: The modules whose parameters receive gradients.
        before: All modules that they compute with, as they are now.
        y: The point before the first step.
        state: The update's state there.
        check: Called in the backward pass with what is computed again. If it is given, the steps
            are also refused if they lead elsewhere the second time, or hold a parameter themselves:
            for this the point after the last step is kept, and the device waited for.

    Returns:
        The point after the last step, and the state there.
    """
    tensors, start_of = partition((y, state))
    end_of: Callable[[Iterable[Tensor]], Any]

    def run(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        nonlocal end_of
        outputs, end_of = partition(steps(*start_of(tensors)))
        return tuple(outputs)

    module = nn.ModuleList(modules)
    own = dict(module.named_parameters())

    def rerun(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # The saved parameters: functional_call may have lent them for the forward pass only.
        saved = dict(zip(own, parameters, strict=True))
        with before.restored(), lent(module, saved):
            outputs = run(tensors)
        if check:
            check_not_held("recompute", outputs, {n.partition(".")[2]: p for n, p in own.items()})
            check(outputs)
        return outputs

    sizes = len(tensors), len(tensors) + len(own)
    outputs = _Recomputed.apply(run, rerun, sizes, bool(check), *tensors, *own.values())
    return end_of(outputs)


class _Recomputed(torch.autograd.Function):
    """The inputs are the tensors of (y, state) and, to receive gradients, all parameters."""

    @staticmethod
    def forward(ctx: Any, run: Any, rerun: Any, sizes: Any, check: bool, *inputs: Tensor) -> Any:
        ctx.rerun, ctx.sizes = rerun, sizes
        # Copies, here and below, since an update may work in place.
        outputs = run([tensor.clone() for tensor in inputs[: sizes[0]]])
        ctx.save_for_backward(*inputs, *(outputs if check else ()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return None, None, None, None, *_Again.apply(ctx.rerun, ctx.sizes, *saved, *grad_outputs)


class _Again(torch.autograd.Function):
    """The product with the Jacobian of steps that are computed again.

    A node, so that every second derivative comes through it and is refused. The error of
    ``once_differentiable`` hangs on no input: a backward pass that is given ``inputs`` skips it.
    """

    @staticmethod
    def forward(ctx: Any, rerun: Any, sizes: Any, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        start, end = sizes
        given, rest = tensors[:start], tensors[end:]
        leaves = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in tensors[:end]]
        with torch.enable_grad():
            outputs = rerun([leaf.clone() for leaf in leaves[:start]], leaves[start:])
        known, grad_outputs = rest[: -len(outputs)], rest[-len(outputs) :]
        _check_same(given, known, outputs)
        required = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(vjp(outputs, required, grad_outputs))
        return tuple(next(grads) if leaf.requires_grad else None for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise BilevelError(
            "Unrolled with recompute gives first derivatives only: its gradient cannot be "
            "differentiated again; leave out create_graph=True, or recompute"
        )


def _check_same(before: Sequence[Tensor], once: Sequence[Tensor], again: Sequence[Tensor]) -> None:
    """Checks that steps that were computed again have led to where they led once.

    Args:
        before: The tensors of the point before them.
        once: Those of the point that they have led to; none if it is not known.
        again: Those of the point that they lead to now.

    Raises:
        BilevelError: If it is another one by more than rounding.
    """
    for start, end, other in zip(before, once, again, strict=False):
        if not end.is_floating_point() or end.shape != start.shape:
            continue
        rounding = 1e3 * torch.finfo(end.dtype).eps * end.norm()
        if (other.detach() - end).norm() > 1e-2 * (end - start).norm() + rounding:
            raise BilevelError(
                "recompute: the steps led elsewhere when they were computed again, so that the "
                "gradient would be that of another solve; draw noise and minibatches by torch's "
                "global random numbers (not from a DataLoader, a Generator or numpy), let an "
                "update return its state (not keep it in self), or leave out recompute"
            )
