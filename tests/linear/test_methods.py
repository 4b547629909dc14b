"""Linear solvers by products: closed forms, known bounds, and what they report."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bilevel.linear import conjugate_gradient, exact, gmres, neumann
from tests.valleys import F64, error, valley

METHODS = {"cg": conjugate_gradient, "gmres": gmres, "exact": exact}


@given(
    method=st.sampled_from(sorted(METHODS)),
    size=st.integers(1, 12),
    condition=st.floats(1.0, 1e4),
    seed=st.integers(0, 99),
)
def test_the_solution_of_a_positive_definite_system(method, size, condition, seed) -> None:
    matrix, b = valley(size, condition, numbers=1, seed=seed)
    b = b[:, 0]
    solution = METHODS[method](lambda v: matrix @ v, b, 20 * size, tolerance=1e-14)
    assert error(solution.value, torch.linalg.solve(matrix, b)) < 1e-9
    assert error(matrix @ solution.value + solution.residual, b) < 1e-11
    assert solution.residual.norm() < 1e-9 * b.norm()
    assert 0.99 < solution.curvature < 1.01 * solution.largest < 1.03 * condition


@pytest.mark.parametrize("method", [*METHODS.values(), neumann])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_reported(method, factor) -> None:
    solution = method(lambda v: factor * v, torch.ones(2, dtype=F64), 3, tolerance=1e-6)
    assert not solution.curvature.isfinite()
    assert not solution.residual.norm() <= 1e-6


@given(condition=st.floats(2.0, 1e4), seed=st.integers(0, 9), steps=st.integers(1, 20))
def test_conjugate_gradients_keep_to_their_bound(condition, seed, steps) -> None:
    matrix, b = valley(40, condition, numbers=1, seed=seed)
    truth = torch.linalg.solve(matrix, b[:, 0])
    solution = conjugate_gradient(lambda v: matrix @ v, b[:, 0], steps)
    assert solution.products == steps
    rest = solution.value - truth
    root = math.sqrt(condition)
    bound = 2 * ((root - 1) / (root + 1)) ** steps * (truth @ matrix @ truth).sqrt()
    assert (rest @ matrix @ rest).sqrt() <= bound * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("unit", [1e-24, 1e22])
@pytest.mark.parametrize("method", METHODS.values())
def test_the_unit_of_the_matrix_does_not_matter(method, unit) -> None:
    """Not even where squares of its numbers are zero or infinite in float32."""
    matrix, b = (given.float() for given in valley(6, 10.0, numbers=1))
    solution = method(lambda v: unit * (matrix @ v), b[:, 0], 20, tolerance=1e-6)
    assert error(unit * solution.value, torch.linalg.solve(matrix, b[:, 0])) < 1e-5
    assert solution.curvature > 0.05 * unit


@pytest.mark.parametrize("unit", [1e-30, 1e30])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("method", METHODS.values())
def test_the_unit_of_the_right_hand_side_does_not_matter(method, rows, unit) -> None:
    """As of a vector in physical units."""
    matrix, b = (given.float() for given in valley(6, 10.0, numbers=1))
    given = b.T if rows and method is not gmres else b[:, 0]
    solution = method(lambda v: v @ matrix, unit * given, 20, tolerance=1e-6)
    assert error(solution.value.flatten() / unit, torch.linalg.solve(matrix, b)[:, 0]) < 1e-5
    assert solution.curvature > 0.05


def test_conjugate_gradient_ends_where_the_residual_is_rounding() -> None:
    matrix, products = torch.diag(torch.tensor([1.0, 1.0, 4.0], dtype=F64)), []

    def product(v: Tensor) -> Tensor:
        products.append(v)
        return matrix @ v

    b = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    solution = conjugate_gradient(product, b, 50)
    torch.testing.assert_close(matrix @ solution.value, b)
    torch.testing.assert_close(solution.residual, b - matrix @ solution.value)
    assert len(products) == solution.products <= 3  # two distinct eigenvalues


@pytest.mark.parametrize("last", [-1.0, 0.0])
def test_conjugate_gradient_stops_at_a_direction_without_curvature(last: float) -> None:
    matrix = torch.diag(torch.tensor([2.0, last], dtype=F64))
    solution = conjugate_gradient(lambda v: matrix @ v, torch.tensor([0.0, 1.0], dtype=F64), 9)
    assert solution.curvature == last
    assert not solution.value.any()
    assert solution.residual.tolist() == [0, 1]


@pytest.mark.parametrize("method", [conjugate_gradient, gmres, neumann])
def test_no_step_leaves_the_start(method) -> None:
    start, b = torch.tensor([1.0, -1.0]), torch.tensor([3.0, 3.0])
    solution = method(lambda v: 2 * v, b, 0, tolerance=1e-6, start=start)
    assert (solution.value.tolist(), solution.residual.tolist()) == ([1, -1], [1, 5])
    assert method(lambda v: 2 * v, b, 0, tolerance=1e-6).products == 0


@pytest.mark.parametrize("method", [conjugate_gradient, gmres, exact])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_singular_matrix_is_solved_where_it_is_not_flat(method, dtype) -> None:
    """X x is that of the least squares; along the null space of X x is free, and not immense."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 50, generator=generator, dtype=F64)
    b = torch.randn(50, generator=generator, dtype=F64)
    matrix, least = (x.T @ x).to(dtype), torch.linalg.pinv(x).T @ b
    for steps in (15, 100):
        solution = method(lambda v: matrix @ v, b.to(dtype), steps, tolerance=1e-6)
        assert error(x @ solution.value.to(F64), least) < 1e-3
        torch.testing.assert_close(
            solution.residual, b.to(dtype) - matrix @ solution.value, rtol=0.05, atol=0.01
        )


@given(range_part=st.floats(0.1, 1.0), null_part=st.floats(0.1, 1.0))
def test_a_flat_direction_that_b_has_spoils_no_other(range_part: float, null_part: float) -> None:
    """Of A = 1 1ᵀ: before the flat direction the last residual is but twice b, and x is wrong."""
    matrix = torch.ones(2, 2, dtype=F64)
    b = torch.tensor([range_part + null_part, range_part - null_part], dtype=F64)
    for method in METHODS.values():
        solution = method(lambda v: matrix @ v, b, 9, tolerance=1e-12)
        assert solution.value.sum() == pytest.approx(range_part, rel=1e-6)
        torch.testing.assert_close(solution.residual, b - matrix @ solution.value)


@pytest.mark.parametrize("size", [10, 10**4])
def test_conjugate_gradients_of_float32_keep_what_has_converged(size: int) -> None:
    """Two curvatures, of which one is 10⁵ times the other, as weight decay leaves it."""
    scales = torch.ones(size)
    scales[: size // 10] = 1e5
    b = torch.ones(size)
    solution = conjugate_gradient(lambda v: scales * v, b, 50, tolerance=1e-6)
    assert (solution.residual.norm() / b.norm()).item() < 1e-6
    torch.testing.assert_close(solution.value, 1 / scales, rtol=1e-4, atol=0)
    by_row = conjugate_gradient(lambda v: scales * v, b[None], 50, tolerance=1e-6)
    torch.testing.assert_close(by_row.value[0], 1 / scales, rtol=1e-4, atol=0)


def test_what_autograd_rounds_is_flat() -> None:
    """A second derivative of zero comes out as some machine epsilons of the largest one."""
    scales, b = torch.tensor([1.0, 4e-15], dtype=F64), torch.tensor([1.0, 1e-12], dtype=F64)
    solution = exact(lambda v: scales * v, b, 0, tolerance=0.0)
    assert solution.value.tolist() == [1, 0]
    assert solution.singular
    assert solution.sigma == 1
    assert 0 < solution.curvature < solution.negligible(torch.finfo(F64).eps) < 1e-14


@pytest.mark.parametrize("method", [gmres, exact])
def test_sigma_is_the_smallest_singular_value_beyond_rounding(method) -> None:
    """Whatever the symmetric part: that of this matrix has the eigenvalues −1, 0 and 1."""
    a = torch.tensor([[0.0, 2.5, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    for size, singular in ((2, False), (3, True)):
        part, b = a[:size, :size], torch.arange(1.0, size + 1, dtype=F64)
        solution = method(lambda v, part=part: part @ v, b, size, tolerance=0.0)
        assert solution.singular == singular
        assert solution.sigma == pytest.approx(0.5)


def test_the_sigma_of_a_series_is_the_least_that_a_residual_is_scaled_by() -> None:
    a = torch.tensor([[0.3, 0.4], [-0.4, 0.3]], dtype=F64)  # half a rotation
    solution = neumann(lambda v: a @ v, torch.ones(2, dtype=F64), 5, tolerance=0.0)
    assert solution.sigma == pytest.approx(0.5)
    assert solution.curvature == pytest.approx(0.3)


def test_conjugate_gradients_from_a_start_far_off_are_those_of_what_it_misses() -> None:
    matrix, b = valley(30, 100.0, numbers=2)
    start = 1e6 * b[:, 1]
    far = conjugate_gradient(lambda v: matrix @ v, b[:, 0], 3, start=start)
    rest = conjugate_gradient(lambda v: matrix @ v, b[:, 0] - matrix @ start, 3)
    torch.testing.assert_close(far.value, start + rest.value)
    assert far.residual.norm() > 10 * b[:, 0].norm()


@pytest.mark.parametrize(("method", "size", "condition"), [(exact, 300, 3e4), (gmres, 100, 1e5)])
def test_float32_matrices_are_solved_as_well_as_by_elimination(method, size, condition) -> None:
    matrix, b = valley(size, condition, numbers=1)
    truth = torch.linalg.solve(matrix, b[:, 0])
    single, c = matrix.float(), b[:, 0].float()
    solution = method(lambda v: single @ v, c, size, tolerance=1e-6)
    assert error(solution.value.to(F64), truth) < 1e-2


@given(method=st.sampled_from([gmres, exact]), size=st.integers(1, 10), seed=st.integers(0, 99))
def test_no_symmetry_and_no_sign_are_needed(method, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=F64)
    matrix = torch.linalg.qr(matrix)[0] + 0.2 * matrix / matrix.norm()
    b = torch.randn(size, generator=generator, dtype=F64)
    solution = method(lambda v: matrix @ v, b, size, tolerance=1e-13)
    assert error(matrix @ solution.value, b) < 1e-10
    assert solution.products <= size


@pytest.mark.parametrize("start", [None, torch.ones(9, dtype=F64)])
def test_gmres_minimises_the_residual_over_as_many_powers_as_it_has_steps(start) -> None:
    matrix, b = torch.randn(9, 9, dtype=F64), torch.randn(9, dtype=F64)
    solution = gmres(lambda v: matrix @ v, b, 3, tolerance=1e-13, start=start)
    rest = b if start is None else b - matrix @ start
    powers = torch.stack([rest, matrix @ rest, matrix @ matrix @ rest], 1)
    best = (
        rest - matrix @ powers @ torch.linalg.lstsq(matrix @ powers, rest[:, None]).solution[:, 0]
    )
    torch.testing.assert_close(solution.residual, best)
    torch.testing.assert_close(b - matrix @ solution.value, best)
    assert solution.products == (3 if start is None else 4)


def test_gmres_keeps_its_vectors_orthogonal_where_a_is_all_but_singular() -> None:
    matrix, b = valley(60, 1e10, numbers=1)
    solution = gmres(lambda v: matrix @ v, b[:, 0], 60, tolerance=1e-14)
    assert error(solution.value, torch.linalg.solve(matrix, b[:, 0])) < 1e-5


def test_gmres_reports_the_residual_where_the_system_has_no_solution() -> None:
    matrix = torch.diag(torch.tensor([2.0, 0.0], dtype=F64))
    b = torch.tensor([2.0, 1.0], dtype=F64)
    solution = gmres(lambda v: matrix @ v, b, 5, tolerance=1e-10)
    torch.testing.assert_close(solution.residual, b - matrix @ solution.value)
    assert solution.residual.norm() == pytest.approx(1.0, abs=0.2)
    shortest = exact(lambda v: matrix @ v, b, 0, tolerance=0.0)
    assert shortest.value.tolist() == [1, 0]
    assert shortest.residual.tolist() == [0, 1]


def test_the_series_shrinks_its_residual_by_what_it_multiplies() -> None:
    values = torch.tensor([0.5, 1.0, 1.5], dtype=F64)
    b = torch.ones(3, dtype=F64)
    solution = neumann(lambda v: values * v, b, 10, tolerance=0.0)
    torch.testing.assert_close(solution.residual, (1 - values) ** 10 * b)
    torch.testing.assert_close(solution.value, (1 - (1 - values) ** 10) / values)
    assert neumann(lambda v: 3 * v, b, 10, tolerance=0.0).residual.norm() > 1000
    sized = neumann(lambda v: 10 * values * v, b, 10, tolerance=0.0, size=0.1)
    torch.testing.assert_close(sized.residual, solution.residual)
    torch.testing.assert_close(10 * sized.value, solution.value)


@pytest.mark.parametrize("method", [conjugate_gradient, gmres, neumann])
def test_a_start_at_the_solution_costs_one_product(method) -> None:
    matrix, b = valley(5, 1.5, numbers=1)
    truth = torch.linalg.solve(matrix, b[:, 0])
    solution = method(lambda v: matrix @ v, b[:, 0], 50, tolerance=1e-10, start=truth)
    assert solution.products == 1
    torch.testing.assert_close(solution.value, truth)


@pytest.mark.parametrize("method", [conjugate_gradient, gmres, neumann])
def test_zero_is_solved_by_zero_without_a_product(method) -> None:
    solution = method(lambda v: 2 * v, torch.zeros(3, dtype=F64), 5, tolerance=1e-6)
    assert solution.value.tolist() == solution.residual.tolist() == [0, 0, 0]
    assert solution.products == 0


@pytest.mark.parametrize("method", [conjugate_gradient, gmres, neumann, exact])
def test_the_units_of_b_change_nothing_and_every_product_is_counted(method) -> None:
    matrix, b = valley(20, 1.5, numbers=1)
    truth, spent = torch.linalg.solve(matrix, b[:, 0]), []
    for unit in (1e-6, 1.0, 1e6):
        products: list[Tensor] = []

        def product(v: Tensor, products: list[Tensor] = products) -> Tensor:
            products.append(v)
            return matrix @ v

        solution = method(product, unit * b[:, 0], 50, tolerance=1e-4)
        assert error(solution.value, unit * truth) < 1e-4
        assert 0.99 < solution.curvature < 1.01 * solution.largest < 1.52
        assert solution.products == len(products)
        spent.append(len(products))
    assert len(set(spent)) == 1
    assert spent[0] < 20 or method is exact


@pytest.mark.parametrize("method", [gmres, exact])
def test_curvature_is_that_of_the_symmetric_part(method) -> None:
    a = torch.tensor([[2.0, 3.0], [0.0, 4.0]], dtype=F64)
    solution = method(lambda v: a @ v, torch.ones(2, dtype=F64), 2, tolerance=0.0)
    torch.testing.assert_close(solution.curvature, torch.linalg.eigvalsh((a + a.T) / 2)[0])


@pytest.mark.parametrize("method", [conjugate_gradient, exact])
def test_the_largest_curvature_may_be_a_negative_one(method) -> None:
    scales = torch.tensor([-5.0, 1.0], dtype=F64)
    b = torch.tensor([3.0, 0.1], dtype=F64)
    assert method(lambda v: scales * v, b, 2, tolerance=0.0).largest > 4.9


def test_gmres_stops_where_its_space_is_closed() -> None:
    scales = torch.cat([torch.tensor([1.0, 2.0, 0.0], dtype=F64), torch.ones(30, dtype=F64)])
    solution = gmres(lambda v: scales * v, torch.ones(33, dtype=F64), 100, tolerance=0.0)
    assert solution.products == 3
    torch.testing.assert_close(solution.value[:2], torch.tensor([1.0, 0.5], dtype=F64))


def test_iterates_from_a_start_near_the_solution_are_not_averaged() -> None:
    """Residuals that are large beside the first one only are none that grew without bound."""
    scales = torch.tensor([1e-4, 1.0], dtype=F64)
    start = 1 - 1e-6 * torch.tensor([1.0, 0.01], dtype=F64) / scales
    solution = conjugate_gradient(lambda v: scales * v, scales, 1, start=start, tolerance=0.0)
    assert solution.products == 2


def test_every_product_is_counted_where_the_mean_is_taken() -> None:
    calls, scales = [], torch.tensor([1.0, -0.999], dtype=F64)

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return scales * v

    assert conjugate_gradient(product, torch.ones(2, dtype=F64), 1).products == len(calls) == 2


def test_what_is_not_finite_is_seen_at_once() -> None:
    found = conjugate_gradient(lambda v: v * torch.nan, torch.ones(3), steps=5)
    assert found.curvature.isnan()
    assert found.products == 1
    assert not found.value.any()


def test_the_largest_quotient_is_one_of_size() -> None:
    assert neumann(lambda v: -v, torch.ones(3), 2, tolerance=0.0).largest == 1


@pytest.mark.parametrize("solve", [conjugate_gradient, gmres, neumann, exact])
def test_autocast_rounds_nothing(solve) -> None:
    """In float16 squares of large vectors would overflow."""
    scales, b = torch.linspace(0.5, 1.5, 8), torch.full((8,), 100.0)
    with torch.autocast("cpu", torch.float16):
        found = solve(lambda v: scales * v, b=b, steps=60, tolerance=1e-6, start=None)
    torch.testing.assert_close(found.value, b / scales, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
@pytest.mark.parametrize(("small", "singular"), [(0.0, True), (1e-18, True), (1e-12, False)])
def test_what_is_singular_is_so_in_any_unit(scale: float, small: float, singular: bool) -> None:
    diagonal, b = torch.tensor([1.0, small], dtype=F64), torch.ones(2, dtype=F64)
    found = exact(lambda v: scale * diagonal * v, b, 0, tolerance=0.0)
    assert bool(found.singular) == singular
    wanted = torch.tensor([1.0, 0.0 if singular else 1 / small], dtype=F64)
    torch.testing.assert_close(found.value * scale, wanted)
