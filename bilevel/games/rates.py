r"""How fast a schedule is near an equilibrium: its linear theory.

Near w* the field is F(w) ≈ J (w − w*), and a gradient step of the players is D = −HJ, with the step
sizes on the diagonal of H. One step of a schedule is then a matrix, whose spectral radius is the
factor by which the distance to w* shrinks or grows a step:

    Simultaneous        I + D
    Alternating(k)      (I + D_φ)ᵏ (I + D_θ)          only the rows of one player
    ProximalPoint(k)    I + D + D² + … + Dᵏ
    Extragradient       I + D + D²
    Optimistic          w ← w + 2Dw − d,  d ← Dw
    Lookahead           (1 − α) I + α Aᵏ              of the inner schedule's A, for k steps
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.schedules import (
    Alternating,
    Lookahead,
    Optimistic,
    ProximalPoint,
    Schedule,
    Simultaneous,
)

Rate = float | tuple[float, float]
"""A step size of both players, or one of each."""


def step_sizes(lr: Rate) -> tuple[float, float]:
    """The step sizes of leader and follower.

    Args:
        lr: One for both, or a pair.

    Returns:
        The pair.

    Raises:
        BilevelError: If one is not positive and finite.
    """
    pair = lr if isinstance(lr, tuple) else (lr, lr)
    for one in pair:
        if not 0 < one < math.inf:
            raise BilevelError(
                f"the step size is {one}: a player that does not move plays no game; give a "
                "positive number, say 0.1"
            )
    return pair


def factor(schedule: Schedule, jacobian: Tensor, leader_size: int, lr: Rate) -> float:
    """The factor a step by which the distance to an equilibrium changes in the end.

    Args:
        schedule: A schedule of the library.
        jacobian: J, the derivative of F = (∂_x f, −∂_y f) at the equilibrium, ``(n, n)``.
        leader_size: How many of the n numbers are the leader's; they come first.
        lr: Step sizes.

    Returns:
        Less than 1 where the players meet, more where they part, 1 where they circle.

    Raises:
        BilevelError: If nothing is known of that schedule.

    Example:
        >>> rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> round(factor(Simultaneous(), rotation, 1, 0.1) ** 2, 6)      # 1 + η²
        1.01
    """
    leader_lr, follower_lr = step_sizes(lr)
    jacobian = jacobian.cpu()
    sizes = jacobian.new_full((len(jacobian),), follower_lr)
    sizes[:leader_size] = leader_lr
    matrix, steps = _transition(schedule, -sizes.unsqueeze(1) * jacobian, leader_size)
    radius = float(torch.linalg.eigvals(matrix).abs().max())
    return float(radius ** (1 / steps))


def best_step(predicted: Callable[[float], float], scale: float) -> float | None:
    """The step size with the smallest factor.

    Args:
        predicted: The factor at a step size.
        scale: About 1/η; the norm of J.

    Returns:
        The step size, searched between 1e-3 and 1e2 in units of ``1/scale``; None where no step
        brings the players together.

    Example:
        >>> best_step(lambda step: abs(1 - 4 * step), scale=4.0)
        0.25
    """
    grid = torch.logspace(-3, 2, 501, dtype=torch.float64) / scale
    values = [predicted(float(step)) for step in grid]
    at = min(range(len(values)), key=values.__getitem__)
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    best = _golden_section(predicted, low, high)
    return round(best, 9) if predicted(best) < 1 - 1e-12 else None


def _transition(schedule: Schedule, move: Tensor, leader_size: int) -> tuple[Tensor, int]:
    """The matrix of a step, or of the k steps of a cycle, on w and on what is remembered."""
    eye = torch.eye(len(move), dtype=move.dtype)
    if isinstance(schedule, Optimistic):
        return torch.cat([_beside(eye + 2 * move, -eye), _beside(move, 0 * eye)]), 1
    if isinstance(schedule, ProximalPoint):
        matrix = eye
        for _ in range(schedule.iterations):
            matrix = eye + move @ matrix
        return matrix, 1
    if isinstance(schedule, Lookahead) and not isinstance(schedule.inner, Lookahead):
        inner, _ = _transition(schedule.inner, move, leader_size)
        matrix = torch.linalg.matrix_power(inner, schedule.steps)
        matrix[: len(move)] *= schedule.alpha
        matrix[: len(move), : len(move)] += (1 - schedule.alpha) * eye
        return matrix, schedule.steps
    if isinstance(schedule, Alternating):
        leads = (torch.arange(len(move)) < leader_size).to(move.dtype).unsqueeze(1)
        first, then = eye + leads * move, eye + (1 - leads) * move
        return torch.linalg.matrix_power(then, schedule.follower_steps) @ first, 1
    if type(schedule) is Simultaneous:
        return eye + move, 1
    raise BilevelError(
        f"nothing is known of how fast {schedule!r} is: its linear theory is not in "
        "bilevel.games.rates; measure it"
    )


def _beside(*blocks: Tensor) -> Tensor:
    return torch.cat(blocks, 1)


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    shrink = (math.sqrt(5) - 1) / 2
    while high - low > 1e-10 * high:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if function(left) < function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
