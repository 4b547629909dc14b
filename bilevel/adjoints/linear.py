"""Solvers of A x = b for a matrix that is known by its products alone.

The implicit adjoint and TRPO both need one. Each reports what is needed to judge its answer, and
none of them raises where A is not what it asks for: that is for the caller to say in words.

    conjugate_gradient    A symmetric and positive definite; one product a step, little memory
    gmres                 any A; one product a step, keeps every step's vector
    neumann               Σ (I − A)ᵏ b, where I − A contracts; one product a step
    exact                 any A; as many products as unknowns, and the matrix in memory
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

Product = Callable[[Tensor], Tensor]
"""v to A v, ``(m,)`` both."""


class LinearSolution(NamedTuple):
    """An answer to A x = b and what was learned of A on the way.

    Args:
        value: x, ``(m,)``.
        residual: b − A x, ``(m,)``.
        curvature: The smallest vᵀAv / vᵀv met, a scalar; 0 or less where a symmetric A is not
            positive definite.
        largest: The largest one met in absolute value, the scale to judge the smallest by.
        products: How many products with A were spent.
    """

    value: Tensor
    residual: Tensor
    curvature: Tensor
    largest: Tensor
    products: int


class LinearSolver(Protocol):
    """What solves a linear system by products."""

    def __call__(
        self, product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None
    ) -> LinearSolution:
        """Solves A x = b.

        Args:
            product: v to A v.
            b: ``(m,)``.
            steps: The most steps to take.
            tolerance: The solve ends where the residual's norm falls to this part of b's.
            start: Where x begins, ``(m,)``; zero if None.

        Returns:
            The answer.
        """


def conjugate_gradient(
    product: Product,
    b: Tensor,
    steps: int,
    *,
    tolerance: float | None = None,
    start: Tensor | None = None,
) -> LinearSolution:
    r"""Solves A x = b for a symmetric, positive definite A (Hestenes and Stiefel, 1952).

    With κ the condition of A, the error after k steps is bounded in the norm of A:

    .. math:: \|x_k - x\|_A \le 2 \Bigl(\frac{\sqrt κ - 1}{\sqrt κ + 1}\Bigr)^k \|x_0 - x\|_A

    Where it meets a direction along which A is not positive it ends with what it has: the
    ``curvature`` it reports is then 0 to rounding, or less (or not finite, if A is not).

    Args:
        product: v to A v, ``(m,)`` both.
        b: ``(m,)``, not zero.
        steps: The most steps to take; fewer are taken where the residual falls to ``tolerance``.
        tolerance: In units of the norm of b; rounding if None.
        start: Where x begins, at the price of a product; zero if None.

    Returns:
        The answer, with the residual as the recursion knows it.

    Example:
        >>> A, b = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([3.0, 4.0])
        >>> conjugate_gradient(lambda v: A @ v, b, steps=2).value.round(decimals=4)
        tensor([1., 1.])
    """
    tolerance = torch.finfo(b.dtype).eps if tolerance is None else tolerance
    x, residual, products = _begin(product, b, start)
    # Numbers and not tensors: each step has to look at two of them, and arithmetic is then free.
    square, target = float(residual @ residual), tolerance**2 * float(b @ b)
    smallest, largest = math.inf, 0.0
    direction, length = residual, square  # the length squared
    for _ in range(steps):
        if square <= target:
            break
        image = product(direction)
        products += 1
        curvature = float(direction @ image)
        ratio = curvature / length
        smallest = smallest if ratio >= smallest else ratio  # NaN stays
        largest = max(largest, abs(ratio))
        if not curvature > 0:  # A is singular along it, or not finite
            break
        x = torch.add(x, direction, alpha=square / curvature)
        residual = torch.sub(residual, image, alpha=square / curvature)
        previous, square = square, float(residual @ residual)
        direction = torch.add(residual, direction, alpha=square / previous)
        length = square + (square / previous) ** 2 * length  # the two are orthogonal
    return LinearSolution(x, residual, b.new_tensor(smallest), b.new_tensor(largest), products)


def neumann(
    product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None = None
) -> LinearSolution:
    r"""Solves A x = b by the series :math:`\sum_k (I - A)^k b` (Lorraine et al., 2020, Alg. 3).

    Each step multiplies the residual by I − A: it shrinks where the eigenvalues of A lie within 1
    of 1, and grows elsewhere.

    Args:
        product: v to A v, ``(m,)`` both.
        b: ``(m,)``.
        steps: The most terms to add.
        tolerance: In units of the norm of b, see :class:`LinearSolver`.
        start: Where x begins, at the price of a product; zero if None.

    Returns:
        The answer.

    Example:
        >>> neumann(lambda v: v / 2, torch.ones(1), steps=50, tolerance=1e-6).value
        tensor([2.0000])
    """
    x, residual, products = _begin(product, b, start)
    smallest, largest = _unseen(b)
    for _ in range(steps):
        if residual.norm() <= tolerance * b.norm():
            break
        image = product(residual)
        products += 1
        ratio = (residual @ image) / (residual @ residual)
        smallest, largest = _note(smallest, largest, ratio)
        x, residual = x + residual, residual - image
    return LinearSolution(x, residual, smallest, largest, products)


def gmres(
    product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None = None
) -> LinearSolution:
    """Solves A x = b for any A by least squares over a Krylov space (Saad and Schultz, 1986).

    It keeps a vector for each step, made orthogonal to the others twice so that rounding does not
    mix them, and never restarts.

    Args:
        product: v to A v, ``(m,)`` both.
        b: ``(m,)``.
        steps: The most steps to take, and at most m are.
        tolerance: In units of the norm of b, see :class:`LinearSolver`.
        start: Where x begins, at the price of a product; zero if None.

    Returns:
        The answer; ``curvature`` is the smallest over the Krylov space.

    Example:
        >>> A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])      # no symmetric part at all
        >>> x = gmres(lambda v: A @ v, torch.tensor([1.0, 2.0]), steps=2, tolerance=1e-6).value
        >>> x.round(decimals=4)
        tensor([-2.,  1.])
    """
    x, residual, products = _begin(product, b, start)
    smallest, largest = _unseen(b)
    length, target = residual.norm(), tolerance * b.norm()
    if length <= target:
        return LinearSolution(x, residual, smallest, largest, products)
    basis = (residual / length)[None]
    coordinates = length[None]  # of the residual, in the basis
    projected = b.new_zeros(1, 0)  # A in the basis: a column for each step
    for _ in range(min(steps, len(b))):
        image = product(basis[-1])
        products += 1
        largest = torch.maximum(largest, image.norm())
        column = torch.zeros_like(coordinates)
        for _ in range(2):
            part = basis @ image
            column, image = column + part, image - part @ basis
        length = image.norm()
        row = pad(length.view(1, 1), (len(column) - 1, 0))
        projected = torch.cat([torch.cat([projected, column[:, None]], 1), row])
        coordinates = torch.cat([coordinates, length.new_zeros(1)])
        basis = torch.cat([basis, image[None] / length.clamp(min=torch.finfo(b.dtype).tiny)])
        # The left factor's last column is what the space cannot reach.
        missed = torch.linalg.qr(projected, mode="complete")[0][:, -1] @ coordinates
        if missed.abs() <= target or length <= torch.finfo(b.dtype).eps * largest:
            break
    weights = torch.linalg.pinv(projected) @ coordinates
    smallest = torch.linalg.eigvalsh((projected[:-1] + projected[:-1].T) / 2)[0]
    residual = (coordinates - projected @ weights) @ basis
    return LinearSolution(x + weights @ basis[:-1], residual, smallest, largest, products)


def exact(
    product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None = None
) -> LinearSolution:
    """Solves A x = b with the matrix written out: the shortest x that is closest to solving it.

    Args:
        product: v to A v, ``(m,)`` both.
        b: ``(m,)``.
        steps: Not read: it takes m products.
        tolerance: Not read.
        start: Not read.

    Returns:
        The answer; ``curvature`` is the smallest eigenvalue of A's symmetric part.

    Example:
        >>> exact(lambda v: 2 * v, torch.ones(2), steps=0, tolerance=0.0).value
        tensor([0.5000, 0.5000])
    """
    unit = torch.eye(len(b), dtype=b.dtype, device=b.device)
    matrix = torch.stack([product(column) for column in unit], dim=1)
    x = torch.linalg.pinv(matrix) @ b
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return LinearSolution(x, b - matrix @ x, values[0], values.abs().max(), len(b))


def _begin(product: Product, b: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, int]:
    if start is None:
        return torch.zeros_like(b), b, 0
    return start, b - product(start), 1


def _unseen(b: Tensor) -> tuple[Tensor, Tensor]:
    return b.new_full((), torch.inf), b.new_zeros(())


def _note(smallest: Tensor, largest: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(smallest, ratio), torch.maximum(largest, ratio.abs())
