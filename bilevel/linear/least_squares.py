"""Solvers by dense least squares, over a Krylov space or over the whole one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

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
def gmres(
    product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None = None
) -> LinearSolution:
    """Solves A x = b for any A by least squares over a Krylov space (Saad and Schultz, 1986).

    Without restarts: the memory is a vector for each step.

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
    smallest, largest = unseen(b)
    norm, target = residual.norm(), tolerance * b.norm()
    if norm <= target or not steps:
        return LinearSolution(x, residual, smallest, largest, smallest, products)
    kind = torch.finfo(b.dtype)
    basis = _Basis(residual / norm)
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
        column, image, length = _orthogonalised(image, length, basis.rows)
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


def _orthogonalised(image: Tensor, length: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The coordinates of a vector in an orthonormal basis, and the rest of it with its length."""
    column = basis.new_zeros(len(basis))
    for _ in range(2):  # again if it has lost a third of its length (Daniel et al., 1976)
        part = basis @ image
        column, image = column + part, image - part @ basis
        before, length = length, _norm(image)
        if length > 0.7 * before:
            break
    return column, image, length


def _norm(x: Tensor) -> Tensor:
    """The Euclidean norm, where the squares of the numbers may be too small for their type."""
    unit = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    return unit * (x / unit).norm()


class _Basis:
    """The rows of a matrix that grows, without a copy of it for each."""

    def __init__(self, first: Tensor) -> None:
        self.rows = self._memory = first[None]

    def append(self, row: Tensor) -> None:
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
