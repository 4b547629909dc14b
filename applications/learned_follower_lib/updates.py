"""Updates that remember the last gradient: one learned, one of three numbers; and their solver."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bilevel import Iterative
from bilevel.solvers import Oracle
from bilevel.tree import Value, ravel, tree_map, unravel
from bilevel.updates import Update
from bilevel.updates.base import State
from bilevel.updates.checks import at_least_one, given, positive


class ScaledGRU(Update):
    r"""A GRU for each number of y, whose unit is the size of its gradient.

    .. math::
        y' = y + \eta\,(g + r \cdot \mathrm{last}(h')), \quad
        h' = \mathrm{GRU}([g,\ 10\,(g - g_{-1}),\ m_{-1}] / r,\ h), \quad
        r = \max(0.9\,r_{-1},\ |g|)

    with the gradient g and the last move η m₋₁. Twice as far from the equilibrium it moves twice
    as far, so that it may converge to the last digit. `last` starts at zero: untrained, it is
    gradient ascent. (:class:`bilevel.updates.CoordinateRNN` reads a lone coordinate's sign only and
    moves by a length of its own, with which no one comes to rest.)

    The state is g, m and r, ``(n,)`` for the n numbers of y, and h, ``(n, hidden)``.

    Args:
        step: η > 0, in units of y² per unit of the objective.
        hidden: Size of a coordinate's memory.

    Example:
        >>> y, _ = ScaledGRU(0.5)(torch.zeros(2), torch.tensor([2.0, -4.0]), None, None)
        >>> y.tolist()
        [1.0, -2.0]
    """

    def __init__(self, step: float, hidden: int = 8) -> None:
        super().__init__()
        self.step = positive("step", step)
        self.cell = nn.GRUCell(3, at_least_one("hidden", hidden))
        self.last = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Moves y by η (g + what the network adds)."""
        slope = ravel(given("gradient", gradient))
        before, move, scale, memory = state or self._start(slope)
        # The floor keeps 0 / 0 away where a player stands at the equilibrium.
        scale = torch.maximum(0.9 * scale, slope.abs()).clamp(min=1e-30)
        # Of a smooth path g − g₋₁ is the small one.
        seen = torch.stack([slope, 10 * (slope - before), move], -1) / scale.unsqueeze(-1)
        memory = self.cell(seen, memory)
        move = slope + scale * self.last(memory).squeeze(-1)
        return _along(y, move, self.step), (slope, move, scale, memory)

    def _start(self, slope: Tensor) -> State:
        zero = torch.zeros_like(slope)
        return slope, zero, zero, slope.new_zeros(len(slope), self.cell.hidden_size)


class GradientDifference(Update):
    r"""y' = y + η m with m = α g + β (g − g₋₁) + γ m₋₁; at its first step m = α g.

    α = β = 1 is the follower's half of the optimistic method.

    Args:
        step: η > 0.
        alpha: α.
        beta: β.
        gamma: γ.

    Example:
        >>> update = GradientDifference(0.5, alpha=1.0, beta=1.0)
        >>> y, state = update(torch.zeros(1), torch.ones(1), None, None)
        >>> update(y, torch.full((1,), 2.0), None, state)[0].tolist()         # 0.5 + 0.5 (2 + 1)
        [2.0]
    """

    def __init__(self, step: float, alpha: float, beta: float, gamma: float = 0.0) -> None:
        super().__init__()
        self.step = positive("step", step)
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Moves y along the gradient, its change and the last move."""
        slope = ravel(given("gradient", gradient))
        before, move = state or (slope, torch.zeros_like(slope))
        move = self.alpha * slope + self.beta * (slope - before) + self.gamma * move
        return _along(y, move, self.step), (slope, move)

    def contraction(self, a: float) -> float:
        r"""The factor a step against gradient descent with the same step on a bilinear game.

        It is the largest |λ| of (λ − 1)²(λ − γ) + s²(αλ + β(λ − 1)) = 0 with s = ηa. Without γ it
        is near 1 + s²(α − β)/2 for small s: what leaves the circles inward is β > α.

        Args:
            a: The singular value.

        Returns:
            The factor.

        Example:
            >>> round(GradientDifference(0.1, alpha=1.0, beta=0.0).contraction(1.0) ** 2, 6)
            1.01
            >>> round(GradientDifference(0.1, alpha=1.0, beta=1.0).contraction(1.0), 6)
            1.000051
        """
        gain, damping = ((self.step * a) ** 2 * number for number in (self.alpha, self.beta))
        cubic = [2 + self.gamma, -(1 + 2 * self.gamma + gain + damping), self.gamma + damping]
        companion = torch.tensor([cubic, [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
        return float(torch.linalg.eigvals(companion).abs().max())


class AtOnce(Iterative):
    """A follower that moves when the leader moves.

    `Iterative` answers with where its step has led, so that the leader, who moves on the answer,
    has seen it. This one answers with where the follower stood; both have moved by the next solve.

    Args:
        update: Its step rule.
    """

    def __init__(self, update: Update) -> None:
        super().__init__(update, steps=1, warm_start=True)

    def answer(self, oracle: Oracle) -> Value:
        """Steps, and answers with the point before."""
        kept = self.get_extra_state()
        stood = oracle.init() if kept is None else kept[0]
        super().answer(oracle)
        return stood


def _along(y: Value, move: Tensor, step: float) -> Value:
    # One operation, as in torch.optim.SGD, whose digits it therefore has.
    return tree_map(partial(torch.add, alpha=step), y, unravel(move, like=y))
