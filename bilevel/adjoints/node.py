"""The nodes of autograd's graph that lead from an answer of a :class:`~bilevel.Pullback` to θ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel.adjoints.base import Adjoint
from bilevel.adjoints.task import Task
from bilevel.errors import BilevelError
from bilevel.tree import Value, from_leaves


def constant(adjoint: Adjoint, tensor: Tensor) -> Tensor:
    """A tensor of the batch, of which a backward pass that asks for the gradient raises.

    Args:
        adjoint: What raises.
        tensor: The tensor.

    Returns:
        The same values.
    """
    return _Constant.apply(adjoint, tensor)


def answer(task: Task, tensors: Sequence[Tensor]) -> Value:
    """Solves.

    Args:
        task: The rest of the solve.
        tensors: The leader's parameters and the tensors of the batch.

    Returns:
        y*, whose gradient in them is that of the adjoint.
    """
    return from_leaves(_Answer.apply(task, *tensors), like=task.solution.value)


class _Constant(torch.autograd.Function):
    """A tensor of the batch, as a node that autograd visits only if its gradient is required.

    ``_Answer`` cannot tell: its ``needs_input_grad`` is fixed in the forward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(adjoint: Adjoint, tensor: Tensor) -> Tensor:
        return tensor.detach()  # a view of it, also of a sparse tensor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.adjoint = inputs[0]

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise ctx.adjoint.batch_error()


class _Answer(torch.autograd.Function):
    """Maps θ and the batch to y*."""

    @staticmethod
    def forward(task: Task, *inputs: Tensor) -> tuple[Tensor, ...]:
        return task.solve(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.task = inputs[0]
        ctx.save_for_backward(*inputs[1:], *output)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1 : 1 + len(ctx.task.names)]
        found = iter(_Pull.apply(ctx.task, wanted, *v, *ctx.saved_tensors) if any(wanted) else ())
        grads = [next(found) if want else None for want in wanted]
        return None, *grads, *(None for _ in ctx.needs_input_grad[1 + len(wanted) :])

    @staticmethod
    def vmap(info: Any, in_dims: Any, task: Task, *inputs: Tensor) -> Any:
        return _map(info, in_dims[1:], inputs, lambda row: _Answer.apply(task, *row))


class _Pull(torch.autograd.Function):
    """Maps v, with θ, the batch and y*, to (dy*/dθ)ᵀ v."""

    @staticmethod
    def forward(task: Task, wanted: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        return task.pull(wanted, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.adjoint = inputs[0].adjoint

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise BilevelError(
            f"{ctx.adjoint!r} gives first derivatives only: its gradient cannot be differentiated "
            "again; leave out create_graph=True, or take Unrolled()"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, task: Task, wanted: Any, *tensors: Tensor) -> Any:
        return _map(info, in_dims[2:], tensors, lambda row: _Pull.apply(task, wanted, *row))


def _map(
    info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor], function: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule for ``vmap``: a loop, since solves branch on the values of tensors."""
    pairs = list(zip(tensors, in_dims, strict=True))
    rows = [
        function([t if dim is None else t.select(dim, i) for t, dim in pairs])
        for i in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return stacked, (0,) * len(stacked)
