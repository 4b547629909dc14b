"""Conjugate gradients for many independent systems at once, one in each row.

A function of its own: a single system branches on Python numbers, a step of which costs less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.linear.system import LinearSolution, Product, begin, rounding


def conjugate_gradient(
    product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None
) -> LinearSolution:
    """:func:`bilevel.linear.conjugate_gradient` where b has rows.

    A product has one of every row's A, and a row that has ended waits for the others. But for
    rounding n steps are enough, where a single system of all rows has to tell all of their
    eigenvalues apart.

    Args:
        product: v to A v, ``(rows, n)`` both.
        b: ``(rows, n)``.
        steps: The largest number of steps.
        tolerance: A row ends when its residual's norm is at most this times that of b's row.
        start: The initial x, which costs a product; zero if None.

    Returns:
        The solution, with the residual of the recursion, and the curvatures of all rows.

    Example:
        >>> scales = torch.tensor([[1.0], [4.0]])
        >>> b = torch.ones(2, 3)
        >>> conjugate_gradient(lambda v: scales * v, b, 1, tolerance=1e-6, start=None).value
        tensor([[1.0000, 1.0000, 1.0000],
                [0.2500, 0.2500, 0.2500]])
    """
    x, residual, products = begin(product, b, start)
    square, given = _dot(residual, residual), _dot(b, b)
    target, immense = tolerance**2 * given, 100 * torch.maximum(square, given)
    smallest, largest = torch.full_like(square, torch.inf), torch.zeros_like(square)
    cut = rounding(torch.finfo(b.dtype).eps, 1)
    direction, length = residual.clone(), square  # the length squared
    mean, weight = x.clone(), torch.zeros_like(square)
    going = ~(square <= target)  # a row that has ended divides 0 by 0, which is not used
    for _ in range(steps):
        if not going.any():
            break
        weight = weight + 1 / square
        mean.lerp_(x, torch.where(going, 1 / (square * weight), 0))
        image = product(direction)
        products += 1
        curvature = _dot(direction, image)
        ratio = curvature / length
        smallest = torch.where(going, torch.minimum(smallest, ratio), smallest)  # keeps NaN
        largest = torch.where(going, torch.maximum(largest, ratio.abs()), largest)
        going = going & (ratio > cut * largest)
        step = torch.where(going, square / curvature, 0)
        x.addcmul_(step, direction)
        residual = torch.where(going, torch.addcmul(residual, step, image, value=-1), residual)
        previous, square = square, _dot(residual, residual)
        rate = torch.where(going, square / previous, 0)
        direction.mul_(rate).add_(residual)
        length = torch.addcmul(square, rate, rate * length)  # the two are orthogonal
        going = going & ~(square <= target)
    lost = (square > immense) | (~(square <= target) & (smallest <= cut * largest))
    if lost.any():
        x = torch.where(lost, mean, x)
        residual, products = b - product(x), products + 1
    least = smallest.min()
    return LinearSolution(x, residual, least, largest.max(), least, products)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, ``(rows, 1)``."""
    return (a * b).sum(1, keepdim=True)
