"""Solvers that keep a few vectors, however many steps they take: short recurrences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilevel.linear import rows
from bilevel.linear.system import (
    LinearSolution,
    Product,
    begin,
    in_a_near_unit,
    in_full_precision,
    rounding,
    unseen,
)


@in_full_precision
@in_a_near_unit
def conjugate_gradient(
    product: Product,
    b: Tensor,
    steps: int,
    *,
    tolerance: float | None = None,
    start: Tensor | None = None,
) -> LinearSolution:
    r"""Solves A x = b for a symmetric, positive definite A (Hestenes and Stiefel, 1952).

    With κ the condition number of A, the error after k steps is bounded in the norm of A:

    .. math:: \|x_k - x\|_A \le 2 \Bigl(\frac{\sqrt κ - 1}{\sqrt κ + 1}\Bigr)^k \|x_0 - x\|_A

    At a direction along which A is not positive it stops: the ``curvature`` that it reports is
    then 0 up to rounding, or negative (or not finite, if A is not). If it does, or if the last
    residual is over ten times b and the first one, as iterates before such a direction may grow
    without bound, x is their mean, weighted by 1/‖r‖², which minimises the residual as
    :func:`gmres` does (Zhou and Walker, 1994), for another product.

    Args:
        product: v to A v, in the shape of b both.
        b: ``(m,)``, not zero, or ``(rows, m)`` where each row has its own A.
        steps: The largest number of steps.
        tolerance: It ends when the residual's norm is at most this times that of b; machine
            epsilon if None.
        start: The initial x, which costs a product; zero if None.

    Returns:
        The solution, with the residual of the recursion, which is b − A x up to κ roundings.

    Example:
        >>> A, b = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([3.0, 4.0])
        >>> conjugate_gradient(lambda v: A @ v, b, steps=2).value.round(decimals=4)
        tensor([1., 1.])
    """
    eps = torch.finfo(b.dtype).eps
    # That of one curvature: the roundings of many singular values would add up.
    tolerance, cut = eps if tolerance is None else tolerance, rounding(eps, 1)
    if b.dim() > 1:
        return rows.conjugate_gradient(product, b, steps, tolerance=tolerance, start=start)
    x, residual, products = begin(product, b, start)
    # Python numbers: each step has to branch on two of them anyway.
    square, given = float(residual @ residual), float(b @ b)
    target, immense = tolerance**2 * given, 100 * max(square, given)
    smallest, largest = math.inf, 0.0
    direction, length = residual.clone(), square  # the length squared
    mean, weight = x.clone(), 0.0
    for _ in range(steps):
        if square <= target:
            break
        weight += 1 / square
        mean.lerp_(x, 1 / (square * weight))
        image = product(direction)
        products += 1
        curvature = float(direction @ image)
        ratio = curvature / length
        smallest = smallest if ratio >= smallest else ratio  # keeps NaN
        largest = max(largest, abs(ratio))
        if not ratio > cut * largest:  # not positive definite, or not finite
            break
        x.add_(direction, alpha=square / curvature)
        residual.sub_(image, alpha=square / curvature)
        previous, square = square, float(residual @ residual)
        direction = torch.add(residual, direction, alpha=square / previous)
        length = square + (square / previous) ** 2 * length  # the two are orthogonal
    if square > immense or (square > target and smallest <= cut * largest):
        x, residual, products = mean, b - product(mean), products + 1
    least = b.new_tensor(smallest)
    return LinearSolution(x, residual, least, b.new_tensor(largest), least, products)


@in_full_precision
@in_a_near_unit
def neumann(
    product: Product,
    b: Tensor,
    steps: int,
    *,
    tolerance: float,
    start: Tensor | None = None,
    size: float = 1.0,
) -> LinearSolution:
    r"""Solves A x = b by the series :math:`η \sum_k (I - η A)^k b` (Lorraine et al., 2020, Alg. 3).

    Each step multiplies the residual by I − ηA, so it converges if ``|1 − ηλ|`` < 1 for every
    eigenvalue λ of A, and diverges otherwise.

    Args:
        product: v to A v, ``(m,)`` both.
        b: ``(m,)``.
        steps: The largest number of terms to add.
        tolerance: It ends when the residual's norm is at most this times that of b.
        start: The initial x, which costs a product; zero if None.
        size: η.

    Returns:
        The solution.

    Example:
        >>> neumann(lambda v: v / 2, torch.ones(1), steps=50, tolerance=1e-6).value
        tensor([2.0000])
    """
    x, residual, products = begin(product, b, start)
    smallest, largest = unseen(b)
    sigma, target = smallest, tolerance * b.norm()
    for _ in range(steps):
        square = residual @ residual
        if square.sqrt() <= target:
            break
        image = product(residual)
        products += 1
        ratio = (residual @ image) / square
        smallest, largest = torch.minimum(smallest, ratio), torch.maximum(largest, ratio.abs())
        sigma = torch.minimum(sigma, image.norm() / square.sqrt())
        x.add_(residual, alpha=size)
        residual.sub_(image, alpha=size)
    return LinearSolution(x, residual, smallest, largest, sigma, products)
