"""Updates with memory of the last gradient, one learned and one linear, and their solver."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bilevel import Iterative
from bilevel.arguments import count, positive
from bilevel.solvers import Oracle
from bilevel.tree import Value, ravel, tree_map, unravel
from bilevel.updates import Update
from bilevel.updates.base import State, given


class ScaledGRU(Update):
    r"""A GRU applied to each coordinate of y, scaled by the magnitude of its gradient.

    .. math::
        y' = y + \eta\,(g + r \cdot \mathrm{last}(h')), \quad
        h' = \mathrm{GRU}([g,\ 10\,(g - g_{-1}),\ m_{-1}] / r,\ h), \quad
        r = \max(0.9\,r_{-1},\ |g|)

    with the gradient g and the last move η m₋₁. It is positively homogeneous in the gradients, so
    it can converge to machine precision. `last` starts at zero: untrained, it is gradient ascent.
    (:class:`bilevel.updates.CoordinateRNN` normalises the gradient: of a single coordinate it sees
    the sign only, and its step length does not shrink.)

    The state is g, m and r, ``(n,)`` for the n coordinates of y, and h, ``(n, hidden)``.

    Args:
        step: η > 0, in units of y² per unit of the objective.
        hidden: Size of the hidden state per coordinate.

    Example:
        >>> y, _ = ScaledGRU(0.5)(torch.zeros(2), torch.tensor([2.0, -4.0]), None, None)
        >>> y.tolist()
        [1.0, -2.0]
    """

    def __init__(self, step: float, hidden: int = 8) -> None:
        super().__init__()
        self.step = positive("step", step)
        self.cell = nn.GRUCell(3, count("hidden", hidden))
        self.last = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Moves y by η (g + the output of the network)."""
        g = ravel(given("gradient", gradient))
        last_g, move, scale, hidden = state or self._initial_state(g)
        # The floor avoids 0 / 0 at the equilibrium.
        scale = torch.maximum(0.9 * scale, g.abs()).clamp(min=1e-30)
        # On a smooth trajectory g − g₋₁ is small beside g, hence the factor 10.
        inputs = torch.stack([g, 10 * (g - last_g), move], -1) / scale.unsqueeze(-1)
        hidden = self.cell(inputs, hidden)
        move = g + scale * self.last(hidden).squeeze(-1)
        return _step_along(y, move, self.step), (g, move, scale, hidden)

    def _initial_state(self, g: Tensor) -> State:
        zero = torch.zeros_like(g)
        return g, zero, zero, g.new_zeros(len(g), self.cell.hidden_size)


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
        g = ravel(given("gradient", gradient))
        last_g, move = state or (g, torch.zeros_like(g))
        move = self.alpha * g + self.beta * (g - last_g) + self.gamma * move
        return _step_along(y, move, self.step), (g, move)

    def contraction(self, a: float) -> float:
        r"""The factor per step against gradient descent of the same step size on a bilinear game.

        It is the largest |λ| of (λ − 1)²(λ − γ) + s²(αλ + β(λ − 1)) = 0 with s = ηa. For γ = 0 and
        small s it is about 1 + s²(α − β)/2, so the game converges for β > α.

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
        alpha, beta = ((self.step * a) ** 2 * weight for weight in (self.alpha, self.beta))
        cubic = [2 + self.gamma, -(1 + 2 * self.gamma + alpha + beta), self.gamma + beta]
        companion = torch.tensor([cubic, [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
        return float(torch.linalg.eigvals(companion).abs().max())


class LaggedIterative(Iterative):
    """One warm-started step per solve, which returns the iterate *before* the step.

    `Iterative` returns the new iterate: the leader responds to the follower's step, and play
    alternates. Returning the previous iterate makes both players step simultaneously.

    Args:
        update: The step rule.
    """

    def __init__(self, update: Update) -> None:
        super().__init__(update, steps=1, warm_start=True)

    def answer(self, oracle: Oracle) -> Value:
        """Takes a step, and returns the iterate before it."""
        previous = oracle.init() if self.kept is None else self.kept[0]
        super().answer(oracle)
        return previous


def _step_along(y: Value, move: Tensor, step: float) -> Value:
    # One fused operation, as in torch.optim.SGD: the results are bit-identical.
    return tree_map(partial(torch.add, alpha=step), y, unravel(move, like=y))
