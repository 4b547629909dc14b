"""Normalisation of gradients, per sample.

The norm of a sample's gradient depends on the leader's confidence and spans many orders of
magnitude; its direction is what updates need:

    max_abs(g)      = g / max|g|      the input of learned updates
    unit_norm(g, p) = g / ‖g‖ₚ        the direction of steepest ascent for p = 2
    unit_rms(g)     = g √m / ‖g‖₂     for m elements: root mean square 1

A tensor ``(B, ...)`` is normalised per sample, so that a sample's answer does not depend on the
rest of the batch. A dict is one variable shared by the batch: all its tensors are divided by their
joint norm, since a norm for each would change the gradient's direction. So a shared variable must
be a dict, even of one tensor, ``{"y": y}``: the rows of a tensor are treated as samples.

A zero gradient stays zero. Where one is infinite, as that of a root at 0, the direction is that of
its infinite numbers. NaN gives NaN for its own sample only.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from bilevel.arguments import one_of
from bilevel.tree import Value, leaves, tree_map

Over = Literal["sample", "batch"]
"""What shares a norm: a sample, or all samples of the batch."""

OVER: tuple[Over, ...] = ("sample", "batch")


def max_abs(gradient: Value, over: Over = "sample") -> Value:
    """The gradient divided by its largest absolute value: ``g / max|g|``.

    Args:
        gradient: A tensor ``(B, ...)`` with a row per sample, or a dict shared by the batch,
            which is divided by the largest value of all its tensors.
        over: ``"sample"`` divides each sample by its own maximum; ``"batch"`` divides by the
            maximum over the batch, as the paper's code does, which makes an attack depend on the
            other images of the batch. For a dict both are the same.

    Returns:
        The same shape, largest absolute value 1; zeros where the gradient is zero.

    Raises:
        BilevelError: If ``over`` is neither.

    Example:
        >>> max_abs(torch.tensor([[1e-30, -2e-30], [4.0, 1.0], [0.0, 0.0]]))
        tensor([[ 0.5000, -1.0000],
                [ 1.0000,  0.2500],
                [ 0.0000,  0.0000]])
    """
    gradient = tree_map(_bounded, gradient)
    return _divide(gradient, _norm(gradient, math.inf, one_of("over", over, OVER)))


def unit_norm(gradient: Value, order: float) -> Value:
    """The gradient divided by its p-norm: ``g / ‖g‖ₚ``.

    Args:
        gradient: A tensor ``(B, ...)`` with a row per sample, or a dict shared by the batch,
            which is divided by the norm of all its tensors together.
        order: p, at least 1.

    Returns:
        The same shape, p-norm 1; zeros where the gradient is zero.

    Example:
        >>> unit_norm(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]), 2)
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    gradient = max_abs(gradient)  # so that powers neither underflow nor overflow
    return _divide(gradient, _norm(gradient, order, "sample"))


def unit_rms(gradient: Value) -> Value:
    """The gradient divided by its root mean square.

    Args:
        gradient: A tensor ``(B, ...)`` with a row per sample, or a dict shared by the batch,
            which is divided by the root mean square of all its elements.

    Returns:
        The same shape, root mean square 1; zeros where the gradient is zero.

    Example:
        >>> unit_rms(torch.tensor([[6.0, 8.0], [0.0, 0.0]]))
        tensor([[0.8485, 1.1314],
                [0.0000, 0.0000]])
    """
    if isinstance(gradient, dict):
        count = sum(leaf.numel() for leaf in leaves(gradient))
    else:
        count = math.prod(gradient.shape[1:])
    return tree_map(lambda leaf: leaf * math.sqrt(count), unit_norm(gradient, 2))


def _norm(gradient: Value, order: float, over: Over) -> Tensor:
    """The p-norm, in a shape that broadcasts against the gradient, and in float32 at least."""
    tensors = [_single(leaf) for leaf in leaves(gradient) if leaf.numel()]
    if not tensors:
        return torch.zeros(())
    if isinstance(gradient, dict):
        return vector_norm(torch.stack([vector_norm(leaf, order) for leaf in tensors]), order)
    (gradient,) = tensors
    if over == "batch":
        return vector_norm(gradient, order)
    if gradient.dim() > 1:
        return vector_norm(gradient, order, tuple(range(1, gradient.dim())), keepdim=True)
    return gradient.abs()  # one number a sample


def _divide(gradient: Value, norm: Tensor) -> Value:
    # Not norm + floor or max(norm, floor): the derivative at zero, 1 / floor, would soon give NaN.
    safe = torch.where(norm == 0, 1, norm)
    return tree_map(lambda leaf: (_single(leaf) / safe).to(leaf.dtype), gradient)


def _bounded(tensor: Tensor) -> Tensor:
    """With the largest number of the type in place of infinity."""
    if tensor.is_complex() or tensor.is_sparse:  # of which torch clamps none
        return tensor
    kind = torch.finfo(tensor.dtype)
    return tensor.clamp(kind.min, kind.max)


def _single(tensor: Tensor) -> Tensor:
    """In float32 at least: the 1-norm of a large image overflows half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
