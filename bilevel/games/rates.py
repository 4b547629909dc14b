r"""Convergence rates of schedules near an equilibrium, by linearisation.

Near w* the field is F(w) ≈ J (w − w*), and a gradient step of the players is D = −HJ, with the step
sizes on the diagonal of H. One step of a schedule is then a matrix, whose spectral radius is the
factor per step of the distance to w*:

    Simultaneous        I + D
    Alternating(k)      (I + D_φ)ᵏ (I + D_θ)          only the rows of one player
    ProximalPoint(k)    I + D + D² + … + Dᵏ
    Extragradient       I + D + D²
    Optimistic          w ← w + 2Dw − d,  d ← Dw
    Lookahead           (1 − α) I + α Aᵏ              with the inner schedule's A, for k steps
    Consensus           I − H (I + γ Jᵀ) J
    SymplecticAdjustment  I − H (I + λ (Jᵀ − J)/2) J  without alignment
    CompetitiveGradient   I − H (I + J_× H)⁻¹ J
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.schedules import (
    Alternating,
    CompetitiveGradient,
    Consensus,
    Corrected,
    Extragradient,
    Lookahead,
    Optimistic,
    ProximalPoint,
    Schedule,
    Simultaneous,
    SymplecticAdjustment,
)

Rate = float | Sequence[float]
"""A step size for both players, or the leader's and the follower's."""

KNOWN = (
    Simultaneous,
    Alternating,
    ProximalPoint,
    Extragradient,
    Optimistic,
    Lookahead,
    Consensus,
    SymplecticAdjustment,
    CompetitiveGradient,
)
"""The schedules with a rate; their subclasses may step otherwise and have none."""


def step_sizes(lr: Rate) -> tuple[float, float]:
    """The step sizes of leader and follower.

    Args:
        lr: One for both, or a pair.

    Returns:
        The pair.

    Raises:
        BilevelError: If one is not positive and finite, or there are neither one nor two.

    Example:
        >>> step_sizes(0.1), step_sizes([0.1, 0.2])
        ((0.1, 0.1), (0.1, 0.2))
    """
    try:
        leader, follower = np.broadcast_to(lr, 2).tolist()
    except ValueError as error:
        raise BilevelError(
            f"the step sizes are {lr}: there are two players; give one number for both, or a pair, "
            "say (0.1, 0.2)"
        ) from error
    for size in (leader, follower):
        if not 0 < size < math.inf:
            raise BilevelError(
                f"the step size is {size}: it must be positive and finite; give a positive "
                "number, say 0.1"
            )
    return leader, follower


def factor(schedule: Schedule, jacobian: Tensor, leader_size: int, lr: Rate) -> float:
    """The asymptotic factor per step of the distance to the equilibria.

    They are a plane where J is singular, along which no schedule moves.

    Args:
        schedule: A schedule of the library.
        jacobian: J, the Jacobian of F = (∂_x f, −∂_y f) at the equilibrium, ``(n, n)``.
        leader_size: The number of the leader's coordinates, which come first.
        lr: The step sizes.

    Returns:
        Less than 1 if the players converge, more if they diverge, 1 if they cycle or rest.

    Raises:
        BilevelError: If a step size is not positive, or the schedule is not known.

    Example:
        >>> rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> round(factor(Simultaneous(), rotation, 1, 0.1) ** 2, 6)      # 1 + η²
        1.01
    """
    leader_lr, follower_lr = step_sizes(lr)
    rounding = len(jacobian) * torch.finfo(jacobian.dtype).eps
    jacobian = jacobian.cpu().double()  # a cycle differs from convergence by rounding
    sizes = jacobian.new_full((len(jacobian),), follower_lr)
    sizes[:leader_size] = leader_lr
    matrix, steps = _transition(schedule, jacobian, sizes, leader_size)
    values = torch.linalg.eigvals(matrix)
    moved = sizes.unsqueeze(1) * jacobian
    resting = len(moved) - int(torch.linalg.matrix_rank(moved, rtol=rounding))  # with eigenvalue 1
    if resting == len(moved):
        return 1.0
    moving = values[(values - 1).abs().argsort()[resting:]]
    return float(moving.abs().max()) ** (1 / steps)


def best_step(predicted: Callable[[float], float], scale: float) -> float | None:
    """The step size with the smallest factor.

    Args:
        predicted: The factor as a function of the step size.
        scale: The norm of J, about 1/η.

    Returns:
        The step size, searched between 1e-8 and 1e2 in units of ``1/scale``; None if the players
        converge at none, infinity if the best is at that end.

    Example:
        >>> best_step(lambda step: abs(1 - 4 * step), scale=4.0)
        0.25
    """
    grid = torch.logspace(-8, 2, 1001, dtype=torch.float64) / scale
    values = [predicted(float(step)) for step in grid]
    at = min(range(len(values)), key=values.__getitem__)
    if at == len(grid) - 1 and values[at] < values[at - 1]:  # the larger the better
        return math.inf
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    best = _golden_section(predicted, low, high)
    return float(f"{best:.9g}") if predicted(best) < 1 - 1e-12 else None


def _transition(
    schedule: Schedule, jacobian: Tensor, sizes: Tensor, leader_size: int
) -> tuple[Tensor, int]:
    """The matrix of a step, or of the k steps of Lookahead, and the number of steps."""
    nested = isinstance(schedule, Lookahead) and isinstance(schedule.inner, Lookahead)
    aligned = isinstance(schedule, SymplecticAdjustment) and schedule.align
    if aligned:
        raise BilevelError(
            f"the rate of {schedule!r} is not known: it chooses a sign in each step; give "
            "align=False, or measure it"
        )
    if type(schedule) not in KNOWN or nested:
        raise BilevelError(
            f"the rate of {schedule!r} is not known: bilevel.games.rates has no linear theory for "
            "it; measure it"
        )
    eye = torch.eye(len(jacobian), dtype=jacobian.dtype)
    if isinstance(schedule, Corrected):
        jacobian = _corrected(schedule, jacobian, sizes, leader_size)
    move = -sizes.unsqueeze(1) * jacobian
    if isinstance(schedule, Optimistic):  # on w and the last displacement
        return torch.cat([torch.hstack([eye + 2 * move, -eye]), torch.hstack([move, 0 * eye])]), 1
    if isinstance(schedule, ProximalPoint):
        matrix = eye
        for _ in range(schedule.iterations):
            matrix = eye + move @ matrix
        return matrix, 1
    if isinstance(schedule, Lookahead):
        inner, _ = _transition(schedule.inner, jacobian, sizes, leader_size)
        matrix = torch.linalg.matrix_power(inner, schedule.steps)
        matrix[: len(move)] *= schedule.alpha
        matrix[: len(move), : len(move)] += (1 - schedule.alpha) * eye
        return matrix, schedule.steps
    if isinstance(schedule, Alternating):
        leads = (torch.arange(len(move)) < leader_size).to(move.dtype).unsqueeze(1)
        leader, follower = eye + leads * move, eye + (1 - leads) * move
        return torch.linalg.matrix_power(follower, schedule.follower_steps) @ leader, 1
    return eye + move, 1


def _corrected(schedule: Schedule, jacobian: Tensor, sizes: Tensor, leader_size: int) -> Tensor:
    """The Jacobian of the corrected field."""
    if isinstance(schedule, Consensus):
        return jacobian + schedule.gamma * jacobian.T @ jacobian
    if isinstance(schedule, SymplecticAdjustment):
        return jacobian + schedule.strength * (jacobian.T - jacobian) @ jacobian / 2
    led = torch.arange(len(jacobian)) < leader_size
    across = jacobian * (led.unsqueeze(1) != led)
    return torch.linalg.solve(torch.eye(len(sizes)).to(sizes) + across * sizes, jacobian)


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    shrink = (math.sqrt(5) - 1) / 2
    while high - low > 1e-10 * high:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if function(left) < function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
