"""Systems A x = b of which only products with A are known, and what their solvers give."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from bilevel.errors import BilevelError

Product = Callable[[Tensor], Tensor]
"""v to A v, in the shape of b both: ``(m,)``, or ``(rows, n)`` where each row has its own A."""


class LinearSolution(NamedTuple):
    """A solution of A x = b, and what the solver learned about A.

    Args:
        value: x, in the shape of b.
        residual: b − A x, likewise.
        curvature: The smallest Rayleigh quotient vᵀAv / vᵀv met, a scalar; 0 or less where a
            symmetric A is not positive definite.
        largest: The largest one in absolute value, to compare the smallest with.
        sigma: The smallest singular value met, a scalar, of :func:`gmres` and :func:`exact` beyond
            rounding; where A is positive definite, the curvature, which is at most that.
        products: The number of products with A.
        singular: Whether A is singular up to rounding, as far as those two can tell.
    """

    value: Tensor
    residual: Tensor
    curvature: Tensor
    largest: Tensor
    sigma: Tensor
    products: int
    singular: bool = False

    def negligible(self, eps: float) -> float:
        """The curvature up to which a direction is flat.

        Args:
            eps: The relative rounding of a product.

        Returns:
            The rounding of a curvature.
        """
        return rounding(eps, self.value.shape[-1]) * float(self.largest)


def rounding(eps: float, size: int) -> float:
    """The part of the largest singular value or curvature up to which another one is zero.

    Args:
        eps: The relative rounding of a product.
        size: The number of unknowns.

    Returns:
        The relative cut-off.
    """
    # Second derivatives by autograd are off by some 20 eps, of however few unknowns. The usual
    # cut, eps times the size, takes float32 matrices of condition 1e4 for singular.
    return eps * max(24.0, math.sqrt(size))


Solve = TypeVar("Solve", bound=Callable[..., LinearSolution])


class LinearSolver(Protocol):
    """The interface of the solvers."""

    def __call__(
        self, product: Product, b: Tensor, steps: int, *, tolerance: float, start: Tensor | None
    ) -> LinearSolution:
        """Solves A x = b.

        Args:
            product: v to A v.
            b: ``(m,)``; for :func:`conjugate_gradient` and :func:`exact` also ``(rows, m)``.
            steps: The largest number of steps.
            tolerance: The solve ends when the residual's norm is at most this times b's.
            start: The initial x, in the shape of b; zero if None.

        Returns:
            The solution.
        """


def in_full_precision(solve: Solve) -> Solve:
    """Without autocast, which rounds products of vectors and matrices; of real numbers only."""

    @wraps(solve)
    def solved(product: Product, b: Tensor, *args: Any, **kwargs: Any) -> LinearSolution:
        if b.is_complex():  # b @ b, which is no square of a norm then, may be 0
            raise BilevelError(
                "b is complex: the linear solvers take real vectors; give them the real system, "
                "of torch.view_as_real(b).flatten(), and its product likewise"
            )
        if not torch.is_autocast_enabled(b.device.type):
            return solve(product, b, *args, **kwargs)
        with torch.autocast(b.device.type, enabled=False):
            return solve(product, b, *args, **kwargs)

    return cast(Solve, solved)


def in_a_near_unit(solve: Solve) -> Solve:
    """In a unit near the largest number of b, since squares of 1e-24, say, are 0 in float32.

    A power of two, so that nothing is rounded by it.

    Args:
        solve: A solver.

    Returns:
        The solver of the system that is divided by the unit.
    """

    @wraps(solve)
    def solved(
        product: Product, b: Tensor, *args: Any, start: Tensor | None = None, **kwargs: Any
    ) -> LinearSolution:
        largest = pad(b.abs().flatten(), (0, 1)).max()  # b may be empty
        mantissa, exponent = torch.frexp(largest)
        power = torch.ldexp(torch.ones_like(mantissa), exponent - 1)
        unit = torch.where(mantissa.isfinite(), power, 1.0)
        start = None if start is None else start / unit
        solution = solve(product, b / unit, *args, start=start, **kwargs)
        value, residual = solution.value * unit, solution.residual * unit
        return solution._replace(value=value, residual=residual)

    return cast(Solve, solved)


def begin(product: Product, b: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """The initial x and its residual, which a solver changes in place.

    Args:
        product: v to A v.
        b: The right-hand side.
        start: The initial x; zero if None.

    Returns:
        x, the residual, and the number of products.
    """
    if start is None:
        return torch.zeros_like(b), b.clone(), 0
    return start.clone(), b - product(start), 1


def unseen(b: Tensor) -> tuple[Tensor, Tensor]:
    """The curvatures before the first product, such that any that is met replaces them.

    Args:
        b: The right-hand side.

    Returns:
        The smallest, which is infinite, and the largest, which is 0.
    """
    return b.new_full((), torch.inf), b.new_zeros(())
