r"""Problems that all processes solve together, each with its own samples.

An objective over the samples of P processes is a sum of their parts,

.. math:: q(θ, y) = \sum_{p=1}^{P} q_p(θ, y).

All hold the same θ and y. Each computes its part from :func:`replicated` arguments and passes it
to :func:`summed`: all then have the same objective, and the same derivatives of any order. The two
are the operators f and g of Megatron-LM (Shoeybi et al., 2019).
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from bilevel.autograd_graph import nodes_of
from bilevel.distributed.pool import Pool
from bilevel.tree import Value, from_leaves, leaves


@overload
def replicated(value: Tensor) -> Tensor: ...
@overload
def replicated(value: dict[str, Tensor]) -> dict[str, Tensor]: ...
def replicated(value: Value) -> Value:
    r"""What all processes hold alike, for use in this process's part of a sum.

    .. math:: x ↦ x, \qquad \frac{∂q}{∂x} = \sum_p \frac{∂q_p}{∂x_p}

    Its gradient is the sum of those of the processes. The backward pass is collective: each process
    must use what this returns, were it for a sum over no samples.

    Args:
        value: The follower's y, or parameters of the leader, the same in all processes.

    Returns:
        The same, with the structure of ``value``.

    Example:
        >>> y = torch.ones(2, requires_grad=True)
        >>> torch.autograd.grad(summed(replicated(y).square().sum()), y)    # in one process
        (tensor([2., 2.]),)
    """
    return from_leaves(_Replicated.apply(*leaves(value)), like=value)


def summed(part: Tensor) -> Tensor:
    r"""The sum over the processes of their parts. Collective.

    .. math:: q_p ↦ \sum_p q_p, \qquad \frac{∂L}{∂q_p} = \frac{∂L}{∂q}

    Args:
        part: What this process computes from its samples: for a mean over N samples, the sum over
            its own, divided by N. What all compute alike, such as weight decay, is no part: add it
            to the sum.

    Returns:
        The sum, of the same shape, in all processes.

    Raises:
        BilevelError: If the process has not joined the others that were started with it.

    Example:
        >>> summed(torch.tensor(3.0))    # in one process
        tensor(3.)
    """
    (total,) = _Summed.apply(part)
    return total


def is_summed(value: Tensor) -> bool:
    """Whether a value is a sum over the processes, rather than this process's part of one.

    Args:
        value: The value, with its graph.

    Returns:
        True if :func:`summed` was applied to all that was made of :func:`replicated` values, as far
        as some 10,000 nodes of the graph tell.
    """
    # A part begins where something is replicated: SyncBatchNorm sums within one.
    nodes = nodes_of([value], until="_ReplicatedBackward")
    return any(node.name() == "_SummedBackward" for node in nodes)


class _Replicated(torch.autograd.Function):
    """The identity; the gradients are summed."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return _Summed.apply(*grads)


class _Summed(torch.autograd.Function):
    """Sums over the processes, in one exchange; each has the sums' gradients."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        sums = [tensor.clone() for tensor in tensors]
        Pool().all_reduce(sums)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return _Replicated.apply(*grads)
