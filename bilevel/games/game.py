"""A game as the follower's problem: its value, its field, what is known of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.games import rates
from bilevel.problem import Batch, FollowerProblem
from bilevel.schedules import Schedule


class Game(FollowerProblem):
    """A zero-sum game f(x, y), as the problem of its follower.

    A subclass writes :meth:`value`; with :meth:`onto` its players are constrained.

    Args:
        equilibrium: x* and y*, ``(n,)`` and ``(m,)``.
        coefficients: What else :meth:`value` reads, so that games of one kind can be stacked.
    """

    sense: Literal["min", "max"] = "max"

    def __init__(self, equilibrium: tuple[Tensor, Tensor], *coefficients: Tensor) -> None:
        self.equilibrium = equilibrium
        self.coefficients = coefficients
        self.count: int | None = None  # of stacked games
        self.start: Tensor | None = None

    @abstractmethod
    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        """f(x, y) of one game.

        Args:
            x: The leader's vector, ``(n,)``.
            y: The follower's, ``(m,)``.
            *coefficients: What the constructor was given.

        Returns:
            A scalar.
        """

    def onto(self, z: Tensor) -> Tensor:
        """The nearest point to ``z`` that a player may choose; any unless a subclass says less.

        Args:
            z: x or y, ``(..., n)``.

        Returns:
            A point of the same shape.
        """
        return z

    def init(self, batch: Batch) -> Tensor:
        """Where :func:`begin` set the follower, for a solver that asks; else zero."""
        y = torch.zeros_like(self.equilibrium[1]) if self.start is None else self.start
        return self.onto(y)

    def objective(self, leader: Any, y: Tensor, batch: Batch) -> Tensor:
        """f(x, y); of stacked games the sum, so that each has the gradient of its own."""
        values = self._values(leader.model.x, y)
        if values.shape != (() if self.count is None else (self.count,)):
            raise BilevelError(
                f"{type(self).__name__}.value gives shape {tuple(values.shape)}: a game is played "
                "for one number; return a scalar, such as the sum"
            )
        return values.sum() if self.count else values

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        """The nearest point that the follower may choose."""
        return self.onto(y)

    def field(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """F(x, y) = (∂f/∂x, −∂f/∂y), against which both players go.

        Args:
            x: ``(n,)``, or ``(G, n)`` for G stacked games.
            y: ``(m,)``, or ``(G, m)``.

        Returns:
            The same shapes.
        """
        slopes = torch.func.grad(lambda x, y: self._values(x, y).sum(), argnums=(0, 1))(x, y)
        return slopes[0], -slopes[1]

    def jacobian(self) -> Tensor:
        """J, the derivative of the field at the equilibrium.

        Returns:
            ``(n + m, n + m)``, the leader's numbers first.

        Raises:
            BilevelError: If the game is a stack of many.
        """
        if self.count is not None:
            raise BilevelError(
                f"{self.count} stacked games have no one Jacobian, factor or best step: ask one of "
                "the games before they are stacked"
            )
        parts = torch.func.jacrev(self.field, argnums=(0, 1))(*self.equilibrium)
        return torch.cat([torch.cat(row, 1) for row in parts])

    def factor(self, schedule: Schedule, lr: rates.Rate) -> float | None:
        """The factor a step by which the distance to the equilibrium is predicted to change.

        Exact for a quadratic game, near the equilibrium for any other.

        Args:
            schedule: A schedule of the library.
            lr: Step sizes.

        Returns:
            The factor; None where constraints leave no linear theory.

        Raises:
            BilevelError: If a step size is not positive, or nothing is known of the schedule.

        Example:
            >>> from bilevel import Alternating, Extragradient
            >>> from bilevel.games import bilinear
        >>> round(bilinear().factor(Extragradient(), 0.5) ** 2, 6)       # 1 − η² + η⁴
            0.8125
            >>> round(bilinear().factor(Alternating(), 0.5), 6)              # circles
            1.0
        """
        return rates.factor(schedule, self.jacobian(), len(self.equilibrium[0]), lr)

    def best_step(self, schedule: Schedule) -> float | None:
        """The step size with the smallest :meth:`factor`.

        Args:
            schedule: A schedule of the library.

        Returns:
            The step size; None where no step brings the players together.

        Example:
            >>> from bilevel import Optimistic, Simultaneous
            >>> from bilevel.games import bilinear
            >>> round(bilinear().best_step(Optimistic()), 6)
            0.5
            >>> bilinear().best_step(Simultaneous())
        """
        jacobian, size = self.jacobian(), len(self.equilibrium[0])
        scale = float(torch.linalg.matrix_norm(jacobian, 2))
        return rates.best_step(lambda lr: rates.factor(schedule, jacobian, size, lr), scale)

    def _values(self, x: Tensor, y: Tensor) -> Tensor:
        if self.count is None:
            return self.value(x, y, *self.coefficients)
        return torch.func.vmap(self.value)(x, y, *self.coefficients)


def stack(games: Sequence[Game]) -> Game:
    """Games of one kind side by side; one step moves them all, by ``torch.func.vmap``.

    Args:
        games: G games whose vectors have the same lengths.

    Returns:
        A game whose x is ``(G, n)`` and whose y is ``(G, m)``.

    Raises:
        BilevelError: If there are none, or they are not of one kind and size.

    Example:
        >>> from bilevel.games import bilinear
        >>> stack([bilinear(1.0), bilinear(2.0)]).field(torch.ones(2, 1).double(),
        ...                                             torch.ones(2, 1).double())[0].tolist()
        [[1.0], [2.0]]
    """
    kinds = sorted({f"{type(g).__name__} {[*map(len, g.equilibrium)]}" for g in games})
    if len(kinds) != 1:
        raise BilevelError(
            f"games of kinds {kinds} cannot be stacked: one function is mapped over all; stack "
            "games of one kind and size, one at least"
        )
    many = copy(games[0])
    many.count = len(games)
    x, y = (torch.stack(part) for part in zip(*(game.equilibrium for game in games), strict=True))
    many.equilibrium = (x, y)
    coefficients = zip(*(game.coefficients for game in games), strict=True)
    many.coefficients = tuple(torch.stack(parts) for parts in coefficients)
    return many
