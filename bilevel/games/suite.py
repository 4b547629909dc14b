"""The games with known equilibria."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.arguments import instance_of
from bilevel.errors import BilevelError
from bilevel.games.game import Game


class Bilinear(Game):
    """f(x, y) = xᵀ A y: a plane of rotation for each singular value.

    Args:
        matrix: A, ``(n, m)``.

    Raises:
        BilevelError: If it is no matrix of finite numbers.

    Example:
        >>> Bilinear(torch.eye(2)).jacobian()[0]
        tensor([0., 0., 1., 0.])
    """

    def __init__(self, matrix: Tensor) -> None:
        matrix = _coefficients(matrix)
        super().__init__((torch.zeros_like(matrix[:, 0]), torch.zeros_like(matrix[0])), matrix)

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        """The bilinear form."""
        (matrix,) = coefficients
        return x @ matrix @ y


class Quadratic(Game):
    """f(x, y) = μ/2 ‖x − x*‖² + (x − x*)ᵀ A (y − y*) − μ/2 ‖y − y*‖².

    Args:
        matrix: A, ``(n, m)``.
        mu: μ ≥ 0.
        equilibrium: x* and y*, converted to the matrix's type; default the origin.

    Raises:
        BilevelError: If A is no matrix of finite numbers.

    Example:
        >>> Quadratic(torch.eye(2), mu=0.5).jacobian()[:, 0]
        tensor([ 0.5000,  0.0000, -1.0000,  0.0000])
    """

    def __init__(
        self,
        matrix: Tensor,
        mu: float = 0.0,
        equilibrium: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        matrix = _coefficients(matrix)
        x, y = (z.to(matrix) for z in equilibrium or Bilinear(matrix).equilibrium)
        super().__init__((x, y), matrix, matrix.new_tensor(mu), x, y)

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        """The quadratic form at the distances from the equilibrium."""
        matrix, mu, x_star, y_star = coefficients
        x, y = x - x_star, y - y_star
        return x @ matrix @ y + mu / 2 * (x @ x - y @ y)


def bilinear(a: float = 1.0) -> Bilinear:
    """f(x, y) = a x y, for scalars: the example of Jiang et al. (2021), Appendix A.

    Args:
        a: The coefficient.

    Returns:
        A game.
    """
    return Bilinear(torch.tensor([[a]], dtype=torch.float64))


def strongly_monotone(mu: float) -> Quadratic:
    """f(x, y) = μ/2 x² + x y − μ/2 y²: simultaneous steps contract by √((1 − ημ)² + η²).

    Args:
        mu: μ > 0.

    Returns:
        A game.
    """
    return Quadratic(torch.ones(1, 1, dtype=torch.float64), mu)


class Forsaken(Game):
    """f(x, y) = x (y − 0.45) + φ(x) − φ(y), with φ(z) = z²/4 − z⁴/2 + z⁶/6 (Hsieh et al., 2021).

    A limit cycle surrounds the equilibrium (0.0780, 0.4119): the known methods converge from nearby
    points, but from (1, 1) they end on the cycle.
    """

    def __init__(self) -> None:
        star = torch.tensor([[0.07804], [0.41193]], dtype=torch.float64)
        super().__init__((star[0], star[1]))
        for _ in range(5):  # Newton's method, to machine precision
            step = torch.linalg.solve(self.jacobian(), torch.cat(self.field(*self.equilibrium)))
            x, y = self.equilibrium
            self.equilibrium = (x - step[:1], y - step[1:])

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        """The bilinear term, and φ for each player."""
        well = self._well(x) - self._well(y)
        return (x * (y - 0.45) + well).sum()

    @staticmethod
    def _well(z: Tensor) -> Tensor:
        return z**2 / 4 - z**4 / 2 + z**6 / 6


class DiracGAN(Game):
    """f(x, y) = −log(1 + exp(−x y)) − log 2 (Mescheder et al., 2018): the smallest GAN.

    The generator is a point mass at x, the data one at 0, and the discriminator D(z) = y z.
    Simultaneous and alternating steps do not converge.
    """

    def __init__(self) -> None:
        origin = torch.zeros(1, dtype=torch.float64)
        super().__init__((origin, origin))

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        """The discriminator's log likelihood."""
        return -F.softplus(-x @ y) - math.log(2)


class MatrixGame(Bilinear):
    """f(x, y) = xᵀ A y of mixed strategies, on two simplices.

    Args:
        matrix: A, the follower's gains, ``(n, m)``.

    Raises:
        BilevelError: If it is no matrix of finite numbers.

    Example:
        >>> rock_paper_scissors = torch.tensor([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
        >>> MatrixGame(rock_paper_scissors).equilibrium[0]
        tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        (matrix,) = self.coefficients
        self.equilibrium = _minimax(matrix), _minimax(-matrix.T)

    def onto(self, z: Tensor) -> Tensor:
        """The nearest mixed strategy (Duchi et al., 2008, Fig. 1)."""
        z = z - z.amax(-1, keepdim=True)  # the same projection, without large sums
        ordered = z.sort(-1, descending=True).values
        excess = (ordered.cumsum(-1) - 1) / torch.arange(1, z.shape[-1] + 1, device=z.device)
        support = (ordered > excess).sum(-1, keepdim=True).clamp(min=1)  # 0 of NaN
        return (z - excess.gather(-1, support - 1)).clamp(min=0)


def _coefficients(matrix: Tensor) -> Tensor:
    """Checks a matrix of coefficients, and converts integers to float64."""
    instance_of("matrix", matrix, Tensor, "torch.tensor(…) of the coefficients")
    if matrix.dim() != 2 or not matrix.numel():
        raise BilevelError(
            f"the matrix has shape {tuple(matrix.shape)}: it has a row for each entry of x, and a "
            "column for each of y; give (n, m), both from 1 on"
        )
    if not matrix.isfinite().all():
        raise BilevelError(
            "the matrix is not finite, and has no equilibrium: give a matrix of finite numbers"
        )
    return matrix if matrix.is_floating_point() else matrix.double()


def _minimax(losses: Tensor) -> Tensor:
    """The mixed strategy x that minimises max_j (xᵀ losses)_j, by a linear programme."""
    from scipy.optimize import linprog

    n, m = losses.shape
    table = losses.detach().cpu().double().numpy()
    table = table - table.mean()  # the equilibrium's, whatever the payoffs are measured in
    table /= abs(table).max() or 1.0
    at_most_t = {"A_ub": np.hstack([table.T, -np.ones((m, 1))]), "b_ub": np.zeros(m)}
    sums_to_1 = {"A_eq": np.array([[1.0] * n + [0.0]]), "b_eq": np.ones(1)}
    bounds = [(0, None)] * n + [(None, None)]  # of x and of the maximum t
    solution = linprog(np.array([0.0] * n + [1.0]), **at_most_t, **sums_to_1, bounds=bounds)
    return torch.as_tensor(solution.x[:n], dtype=losses.dtype, device=losses.device)
