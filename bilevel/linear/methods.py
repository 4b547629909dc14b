"""Matrix-free solvers of A x = b.

Each reports diagnostics of its answer, and none raises if A does not meet its assumptions.

    conjugate_gradient    A symmetric and positive definite; one product a step, little memory; of
                          each row, where b has several
    gmres                 any A; one product a step, keeps a vector for each step
    neumann               η Σ (I − ηA)ᵏ b, where I − ηA contracts; one product a step
    exact                 any A; as many products as unknowns, and the matrix in memory; of a row,
                          where b has several
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from bilevel.linear import rows
from bilevel.linear.system import (
    LinearSolution,
    Product,
    begin,
    in_a_near_unit,
    in_full_precision,
    rounding,
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
    smallest, largest = _unseen(b)
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


@in_full_precision
@in_a_near_unit
def gmres(
    product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None = None
) -> LinearSolution:
    """Solves A x = b for any A by least squares over a Krylov space (Saad and Schultz, 1986).

    Without restarts: the memory is a vector for each step. A basis vector that has lost more than
    a third of its length by orthogonalisation is orthogonalised again (Daniel et al., 1976).

    Args:
        product: v to A v, ``(m,)`` both.
        b: ``(m,)``.
        steps: The largest number of steps; at most m are taken.
        tolerance: It ends when the residual's norm is at most this times that of b.
        start: The initial x, which costs a product; zero if None.

    Returns:
        The solution; ``curvature`` is the smallest over the Krylov space.

    Example:
        >>> A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])      # no symmetric part at all
        >>> x = gmres(lambda v: A @ v, torch.tensor([1.0, 2.0]), steps=2, tolerance=1e-6).value
        >>> x.round(decimals=4)
        tensor([-2.,  1.])
    """
    x, residual, products = begin(product, b, start)
    smallest, largest = _unseen(b)
    norm, target = residual.norm(), tolerance * b.norm()
    if norm <= target:
        return LinearSolution(x, residual, smallest, largest, smallest, products)
    kind = torch.finfo(b.dtype)
    basis = Basis(residual / norm)
    columns: list[Tensor] = []  # of the Hessenberg matrix of A in the basis
    normal = b.new_ones(1)  # orthogonal to them: the least residual is norm / ‖normal‖
    for _ in range(min(steps, len(b))):
        image = product(basis.rows[-1])
        products += 1
        if not image.isfinite().all():  # torch.linalg would raise
            nan = basis.rows[-1] @ image
            return LinearSolution(x, residual, nan, largest, nan, products)
        length = _norm(image)
        largest = torch.maximum(largest, length)
        column = torch.zeros_like(normal)
        for _ in range(2):
            part = basis.rows @ image
            column, image = column + part, image - part @ basis.rows
            before, length = length, _norm(image)
            if length > 0.7 * before:
                break
        columns.append(torch.cat([column, length[None]]))
        below = length.clamp(min=kind.tiny)
        basis.append(image / below)
        normal = torch.cat([normal, -(normal @ column)[None] / below])
        if norm <= target * normal.norm() or length <= kind.eps * largest:
            break
    size, precise = len(basis.rows), torch.promote_types(b.dtype, torch.float32)
    projected = torch.stack([pad(c, (0, size - len(c))) for c in columns], 1).to(precise)
    coordinates = pad(norm[None], (0, len(columns))).to(precise)  # of the residual
    weights, sigma, singular = _least_squares(projected, coordinates)
    smallest = torch.linalg.eigvalsh((projected[:-1] + projected[:-1].T) / 2)[0].to(b)
    residual = (coordinates - projected @ weights).to(b) @ basis.rows
    x = x + weights.to(b) @ basis.rows[:-1]
    return LinearSolution(x, residual, smallest, largest, sigma.to(b), products, singular)


def _norm(x: Tensor) -> Tensor:
    """The Euclidean norm, where the squares of the numbers may be too small for their type."""
    unit = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    return unit * (x / unit).norm()


class Basis:
    """The rows of a matrix that grows, without a copy of it for each.

    Args:
        first: The first row.
    """

    def __init__(self, first: Tensor) -> None:
        self.rows = self._memory = first[None]

    def append(self, row: Tensor) -> None:
        """Adds a row.

        Args:
            row: The row.
        """
        count = len(self.rows)
        if count == len(self._memory):
            self._memory = torch.cat([self.rows, torch.empty_like(self.rows)])
        self._memory[count] = row
        self.rows = self._memory[: count + 1]


@in_full_precision
def exact(
    product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None = None
) -> LinearSolution:
    """Solves A x = b by the dense matrix; by its pseudoinverse if it is singular up to rounding.

    Args:
        product: v to A v, in the shape of b both.
        b: ``(m,)``, or ``(rows, m)`` where each row has its own A.
        steps: Not used: it takes m products.
        tolerance: Not used.
        start: Not used.

    Returns:
        The solution; ``curvature`` is the smallest eigenvalue of A's symmetric part, of any row.

    Example:
        >>> exact(lambda v: 2 * v, torch.ones(2), steps=0, tolerance=0.0).value
        tensor([0.5000, 0.5000])
    """
    unit = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
    matrix = torch.stack([product(column.expand_as(b)) for column in unit], dim=-1)
    if not matrix.isfinite().all():  # torch.linalg would raise
        nan = b.new_full((), torch.nan)
        return LinearSolution(torch.zeros_like(b), b, nan, nan, nan, len(unit))
    values = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
    curvature, largest = values.min(), values.abs().max()
    # No singular value is smaller than the smallest of these.
    if (values[..., 0] > _cut(b) * torch.linalg.matrix_norm(matrix)).all():
        x, sigma, singular = torch.linalg.solve(matrix, b), curvature, False
    else:
        x, sigma, singular = _least_squares(matrix, b)
    residual = b - (matrix @ x[..., None])[..., 0]
    return LinearSolution(x, residual, curvature, largest, sigma, len(unit), singular)


def _least_squares(matrix: Tensor, b: Tensor) -> tuple[Tensor, Tensor, bool]:
    """The x of the least ‖b − A x‖, and of those the shortest; see LinearSolution for the rest."""
    cut, columns = _cut(b), b[..., None]
    values = torch.linalg.svdvals(matrix)
    regular = values > cut * values[..., :1]
    if regular.all():
        x = torch.linalg.lstsq(matrix, columns, driver="gels").solution
    else:
        x = matrix.pinverse(cut) @ columns
    return x[..., 0], torch.where(regular, values, torch.inf).min(), not regular.all()


def _cut(b: Tensor) -> float:
    return rounding(torch.finfo(b.dtype).eps, b.shape[-1])


def _unseen(b: Tensor) -> tuple[Tensor, Tensor]:
    return b.new_full((), torch.inf), b.new_zeros(())
