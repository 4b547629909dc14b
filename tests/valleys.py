"""Followers whose answers and their derivatives in θ are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bilevel import Adjoint, FollowerProblem, Implicit, LeaderProblem, Oracle, Solution, Solver
from bilevel.tree import Value, leaves

F64 = torch.float64
exactly = partial(Implicit, tolerance=1e-13, max_steps=500)


class Valley(NamedTuple):
    """The batch of :class:`Quadratic`: H, symmetric and positive definite, and B."""

    h: Tensor
    b: Tensor


def valley(size: int, condition: float, *, numbers: int = 3, seed: int = 0) -> Valley:
    """Eigenvalues from 1 to the condition, evenly in the logarithm, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))
    values = torch.logspace(0, torch.tensor(condition).log10().item(), size, dtype=F64)
    matrix = torch.randn(size, numbers, generator=generator, dtype=F64)
    return Valley((basis * values) @ basis.T, matrix)


class Numbers(LeaderProblem):
    """θ, and a loss that gives v = ∂L/∂y."""

    def __init__(self, numbers: int, v: Tensor | None = None) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(0.5, 1.5, numbers, dtype=F64))
        self.register_buffer("v", v)

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return self.v @ y


class Quadratic(FollowerProblem):
    """Optimum of ½ yᵀHy − yᵀB θ, or of its negative: y* = H⁻¹Bθ, dy*/dθ = H⁻¹B."""

    def __init__(self, sense: str = "min") -> None:
        self.sense = sense

    def init(self, batch: Valley) -> Tensor:
        return torch.zeros(len(batch.h), dtype=F64)

    def objective(self, leader: Numbers, y: Tensor, batch: Valley) -> Tensor:
        cost = y @ batch.h @ y / 2 - y @ batch.b @ leader.theta
        return cost if self.sense == "min" else -cost


class Boxed(FollowerProblem):
    """min over y in [−1, 1]ᵐ, for each sample, of ½ Σ hᵢ (yᵢ − θᵢ xᵢ)²: the clamped θ ∘ x.

    Its derivative in θᵢ is xᵢ inside and 0 where the box stops it.
    """

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: Numbers, y: Tensor, batch: Tensor) -> Tensor:
        weights = torch.linspace(0.5, 2.0, batch.shape[1], dtype=F64)
        return (weights * (y - leader.theta * batch).square()).sum(1) / 2

    def project(self, y: Tensor, batch: Tensor) -> Tensor:
        return y.clamp(-1, 1)


class Curve(FollowerProblem):
    """min over y of Σ (cosh(yᵢ) − yᵢ (Bθ)ᵢ), at y* = asinh(Bθ): curved more than a quadratic."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(len(batch), dtype=F64)

    def objective(self, leader: Numbers, y: Tensor, batch: Tensor) -> Tensor:
        return y.cosh().sum() - y @ batch @ leader.theta


class Known(Solver):
    """Answers by a formula."""

    def __init__(self, formula: Callable[[Any, Any], Value]) -> None:
        super().__init__()
        self.formula = formula

    def answer(self, oracle: Oracle) -> Value:
        with torch.no_grad():
            return self.formula(oracle.leader, oracle.batch)


def optimum(leader: Numbers, batch: Valley) -> Tensor:
    return torch.linalg.solve(batch.h, batch.b @ leader.theta)


def hypergradient(
    adjoint: Adjoint,
    solver: Solver,
    follower: FollowerProblem,
    leader: LeaderProblem,
    batch: Any,
    v: Value,
) -> tuple[Tensor, Solution]:
    """(dy*/dθ)ᵀ v for the leader's θ, as the adjoint has it, and the solution."""
    solution = adjoint.solve(solver, follower, leader, batch)
    (slope,) = torch.autograd.grad(leaves(solution.value), leader.theta, leaves(v))
    return slope, solution


def error(slope: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((slope - expected).norm() / expected.norm())


def pulled_back(batch: Valley, v: Tensor) -> Tensor:
    """(dy*/dθ)ᵀ v of :class:`Quadratic`."""
    return batch.b.T @ torch.linalg.solve(batch.h, v)


class Shrunk(FollowerProblem):
    """min over y of ½‖y − a‖² + ½ e^θ ‖y‖², at y* = a / (1 + e^θ)."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: Decay, y: Tensor, batch: Tensor) -> Tensor:
        return ((y - batch).square().sum() + leader.theta.exp() * y.square().sum()) / 2


class Decay(LeaderProblem):
    """Wants ‖y − a/3‖² small: at e^θ = 2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=F64))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return (y - batch / 3).square().sum()
