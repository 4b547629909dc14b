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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.schedules import (
    Alternating,
    CompetitiveGradient,
    Consensus,
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

LARGEST = 1e100
"""Of larger entries LAPACK finds no eigenvalues, or crashes; the players diverge there."""


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
        Less than 1 if the players converge, more if they diverge, 1 if they cycle or rest; infinity
        if a step is too large to compute with.

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
    matrix = _transition(schedule, _Linear(jacobian, sizes, leader_size))
    if not (matrix.abs() < LARGEST).all():
        return math.inf
    values = torch.linalg.eigvals(matrix)
    moved = sizes.unsqueeze(1) * jacobian
    resting = len(moved) - int(torch.linalg.matrix_rank(moved, rtol=rounding))  # with eigenvalue 1
    if resting == len(moved):
        return 1.0
    moving = values[(values - 1).abs().argsort()[resting:]]
    steps = schedule.steps if isinstance(schedule, Lookahead) else 1
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


class _Linear(NamedTuple):
    """A game whose field is J (w − w*), with the step size of each coordinate."""

    jacobian: Tensor
    sizes: Tensor
    leader_size: int

    @property
    def eye(self) -> Tensor:
        return torch.eye(len(self.sizes), dtype=self.sizes.dtype)

    @property
    def leads(self) -> Tensor:
        """Which rows are the leader's."""
        return (torch.arange(len(self.sizes)) < self.leader_size).unsqueeze(1)

    @property
    def move(self) -> Tensor:
        """D."""
        return -self.sizes.unsqueeze(1) * self.jacobian

    def step(self, jacobian: Tensor) -> Tensor:
        """The matrix of a gradient step along another field."""
        return self.eye + self._replace(jacobian=jacobian).move


def _transition(schedule: Schedule, game: _Linear) -> Tensor:
    """The matrix of a step, or of the k steps of Lookahead."""
    known = _TRANSITIONS.get(type(schedule))  # a subclass may step otherwise
    if known is None:
        raise _unknown(schedule)
    return known(schedule, game)


def _unknown(schedule: Schedule) -> BilevelError:
    return BilevelError(
        f"the rate of {schedule!r} is not known: bilevel.games.rates has no linear theory for it; "
        "measure it"
    )


def _simultaneous(_: Simultaneous, game: _Linear) -> Tensor:
    return game.step(game.jacobian)


def _alternating(schedule: Alternating, game: _Linear) -> Tensor:
    leader, follower = (game.eye + rows * game.move for rows in (game.leads, ~game.leads))
    return torch.linalg.matrix_power(follower, schedule.follower_steps) @ leader


def _proximal_point(schedule: ProximalPoint, game: _Linear) -> Tensor:
    matrix = game.eye
    for _ in range(schedule.iterations):
        matrix = game.eye + game.move @ matrix
    return matrix


def _optimistic(_: Optimistic, game: _Linear) -> Tensor:
    """On w and the last displacement d."""
    eye, move = game.eye, game.move
    return torch.cat([torch.hstack([eye + 2 * move, -eye]), torch.hstack([move, 0 * eye])])


def _lookahead(schedule: Lookahead, game: _Linear) -> Tensor:
    if isinstance(schedule.inner, Lookahead):
        raise _unknown(schedule)
    matrix = torch.linalg.matrix_power(_transition(schedule.inner, game), schedule.steps)
    size = len(game.sizes)  # what the inner schedule keeps beside w is not interpolated
    matrix[:size] *= schedule.alpha
    matrix[:size, :size] += (1 - schedule.alpha) * game.eye
    return matrix


def _consensus(schedule: Consensus, game: _Linear) -> Tensor:
    corrected = game.eye + schedule.gamma * game.jacobian.T
    return game.step(corrected @ game.jacobian)


def _symplectic(schedule: SymplecticAdjustment, game: _Linear) -> Tensor:
    if schedule.align:
        raise BilevelError(
            f"the rate of {schedule!r} is not known: it chooses a sign in each step; give "
            "align=False, or measure it"
        )
    turning = (game.jacobian.T - game.jacobian) / 2
    corrected = game.eye + schedule.strength * turning
    return game.step(corrected @ game.jacobian)


def _competitive(_: CompetitiveGradient, game: _Linear) -> Tensor:
    across = game.jacobian * (game.leads != game.leads.T)
    corrected = game.eye + across * game.sizes
    return game.step(torch.linalg.solve(corrected, game.jacobian))


_TRANSITIONS: dict[type[Schedule], Callable[[Any, _Linear], Tensor]] = {
    Simultaneous: _simultaneous,
    Alternating: _alternating,
    ProximalPoint: _proximal_point,
    Extragradient: _proximal_point,
    Optimistic: _optimistic,
    Lookahead: _lookahead,
    Consensus: _consensus,
    SymplecticAdjustment: _symplectic,
    CompetitiveGradient: _competitive,
}


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    shrink = (math.sqrt(5) - 1) / 2
    while high - low > 1e-10 * high:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if function(left) < function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
