"""Linear systems in rows: each is solved as it would be alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel import linear
from tests.valleys import F64, error, valley


def systems(*conditions: float, size: int = 8) -> tuple[Tensor, Tensor]:
    """A matrix of each condition, ``(rows, n, n)``, and right sides, ``(rows, n)``."""
    made = [valley(size, condition, numbers=1, seed=i) for i, condition in enumerate(conditions)]
    return torch.stack([h for h, _ in made]), torch.stack([b[:, 0] for _, b in made])


def of_rows(matrix: Tensor):
    return lambda v: torch.einsum("bij,bj->bi", matrix, v)


@pytest.mark.parametrize("steps", [3, 50])
@pytest.mark.parametrize("started", [False, True])
def test_every_row_takes_the_steps_that_it_would_take_alone(steps: int, started: bool) -> None:
    matrix, b = systems(1.0, 5.0, 100.0)
    b[1] *= 1e-6
    start = b.flip(1) if started else None
    together = linear.conjugate_gradient(of_rows(matrix), b, steps, tolerance=1e-7, start=start)
    alone = [
        linear.conjugate_gradient(
            lambda v, i=i: matrix[i] @ v, b[i], steps, tolerance=1e-7,
            start=None if start is None else start[i],
        )
        for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(together.value, torch.stack([one.value for one in alone]))
    torch.testing.assert_close(together.curvature, min(one.curvature for one in alone))
    torch.testing.assert_close(together.largest, max(one.largest for one in alone))
    assert together.products == max(one.products for one in alone)
    if steps == 50:
        assert together.products <= 10 + started
        assert (together.residual.norm(dim=1) <= 1e-7 * b.norm(dim=1)).all()


@pytest.mark.parametrize("method", [linear.conjugate_gradient, linear.exact])
def test_a_row_of_zeros_and_one_that_is_solved_wait_for_the_others(method) -> None:
    matrix, b = systems(3.0, 3.0, 100.0)
    b[0] = 0
    truth = torch.linalg.solve(matrix, b[..., None])[..., 0]
    start = torch.stack([truth[0], truth[1], torch.zeros(8, dtype=F64)])
    solution = method(of_rows(matrix), b, 50, tolerance=1e-12, start=start)
    assert error(solution.value, truth) < 1e-10
    assert solution.value[0].tolist() == [0] * 8
    assert 0.99 < solution.curvature < 1.01 * solution.largest < 102


@pytest.mark.parametrize("last", [-1.0, 0.0, torch.nan])
def test_a_row_that_is_not_positive_definite_stops_alone(last: float) -> None:
    matrix, b = systems(10.0, 10.0)
    matrix[0] = torch.eye(8, dtype=F64) * last
    solution = linear.conjugate_gradient(of_rows(matrix), b, 50, tolerance=1e-12)
    torch.testing.assert_close(solution.curvature, torch.tensor(last, dtype=F64), equal_nan=True)
    assert solution.value[0].tolist() == [0] * 8
    torch.testing.assert_close(solution.residual[0], b[0])
    assert error(solution.value[1], torch.linalg.solve(matrix[1], b[1])) < 1e-10


@pytest.mark.parametrize("method", [linear.conjugate_gradient, linear.exact])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_singular_row_is_solved_where_it_is_not_flat(method, dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 50, generator=generator, dtype=F64)
    matrix, b = x.mT @ x, torch.randn(2, 50, generator=generator, dtype=F64)
    matrix[1] = valley(50, 300.0).h  # takes more steps than the rank of the other
    solution = method(of_rows(matrix.to(dtype)), b.to(dtype), 100, tolerance=1e-6)
    value = solution.value.to(F64)
    assert error(x[0] @ value[0], torch.linalg.pinv(x[0]).T @ b[0]) < 1e-3
    assert error(value[1], torch.linalg.solve(matrix[1], b[1])) < 1e-3
    torch.testing.assert_close(
        solution.residual[0].to(F64), b[0] - matrix[0] @ value[0], rtol=0.05, atol=0.01
    )


def test_a_flat_direction_of_a_row_spoils_no_other() -> None:
    """Of A = 1 1ᵀ in one row, whose last residual before it is not immense."""
    matrix, b = systems(10.0, 10.0)
    matrix[0] = torch.ones(8, 8, dtype=F64)
    b[0] = 1 + torch.linspace(-1, 1, 8, dtype=F64)
    solution = linear.conjugate_gradient(of_rows(matrix), b, 50, tolerance=1e-12)
    assert solution.value[0].sum() == pytest.approx(1, rel=1e-6)
    assert error(solution.value[1], torch.linalg.solve(matrix[1], b[1])) < 1e-10
    torch.testing.assert_close(solution.residual, b - of_rows(matrix)(solution.value))


def test_a_matrix_of_a_row_that_is_not_finite_is_reported() -> None:
    matrix, b = systems(10.0, 10.0)
    matrix[0, 3, 3] = torch.inf
    solution = linear.exact(of_rows(matrix), b, 0, tolerance=0.0)
    assert solution.curvature.isnan()
    torch.testing.assert_close(solution.residual, b)


def test_the_matrices_of_all_rows_take_the_products_of_one() -> None:
    matrix, b = systems(1.0, 100.0, 1e4)
    matrix += torch.ones(8, 8, dtype=F64).triu(1) - torch.ones(8, 8, dtype=F64).tril(-1)
    solution = linear.exact(of_rows(matrix), b, 0, tolerance=0.0)
    assert error(solution.value, torch.linalg.solve(matrix, b[..., None])[..., 0]) < 1e-10
    torch.testing.assert_close(solution.curvature, torch.tensor(1.0, dtype=F64))
    torch.testing.assert_close(solution.largest, torch.tensor(1e4, dtype=F64))
    assert solution.products == 8
