"""Linear solvers take real vectors; a complex system is the real one of twice the size."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bilevel import BilevelError
from bilevel.linear import conjugate_gradient, exact, gmres, neumann


@pytest.mark.parametrize("solve", [conjugate_gradient, gmres, exact, partial(neumann, size=0.25)])
def test_a_complex_system_is_refused_and_solved_as_the_real_one(solve) -> None:
    """Conjugate gradients answered 0 where b @ b is 0 or negative, without a word."""
    matrix = torch.tensor([[2, 1j], [-1j, 3]], dtype=torch.complex128)
    b = torch.tensor([1, 1j], dtype=torch.complex128)
    with pytest.raises(BilevelError, match="b is complex"):
        solve(lambda v: matrix @ v, b, 200, tolerance=1e-12)

    def product(v):
        return torch.view_as_real(matrix @ torch.view_as_complex(v.view(-1, 2))).flatten()

    found = solve(product, torch.view_as_real(b).flatten(), 200, tolerance=1e-12).value
    torch.testing.assert_close(
        torch.view_as_complex(found.view(-1, 2)), torch.linalg.solve(matrix, b)
    )
