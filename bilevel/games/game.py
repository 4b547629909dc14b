"""The base class of games: value, field, equilibrium and rates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from bilevel.errors import BilevelError
from bilevel.games import rates
from bilevel.problem import Batch, FollowerProblem
from bilevel.schedules import Schedule


class Game(FollowerProblem):
    """A zero-sum game f(x, y), as the problem of its follower.

    A subclass implements :meth:`value`, and :meth:`onto` if the players are constrained.

    Args:
        equilibrium: x* and y*, ``(n,)`` and ``(m,)``.
        coefficients: Further arguments of :meth:`value`, batched when games are stacked.
    """

    sense = "max"

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
            *coefficients: The coefficients given to the constructor.

        Returns:
            A scalar.
        """

    def onto(self, z: Tensor) -> Tensor:
        """Projects a player's vector onto its constraints; by default there are none.

        Args:
            z: x or y, ``(..., n)``.

        Returns:
            A point of the same shape.
        """
        return z

    def init(self, batch: Batch) -> Tensor:
        """The follower's start that :func:`begin` was given; else zero, projected."""
        y = torch.zeros_like(self.equilibrium[1]) if self.start is None else self.start
        return self.onto(y)

    def objective(self, leader: Any, y: Tensor, batch: Batch) -> Tensor:
        """f(x, y); for stacked games the sum, which has the gradients of each."""
        values = self._values(leader.model.x, y)
        return values.sum() if self.count else values

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        """Projects y by :meth:`onto`."""
        return self.onto(y)

    def field(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """F(x, y) = (∂f/∂x, −∂f/∂y); both players move along −F.

        Args:
            x: ``(n,)``, or ``(G, n)`` for G stacked games.
            y: ``(m,)``, or ``(G, m)``.

        Returns:
            The same shapes.
        """
        grads = torch.func.grad(lambda x, y: self._values(x, y).sum(), argnums=(0, 1))(x, y)
        return grads[0], -grads[1]

    def jacobian(self) -> Tensor:
        """J, the Jacobian of the field at the equilibrium.

        Returns:
            ``(n + m, n + m)``, the leader's coordinates first.

        Raises:
            BilevelError: If the game is a stack.
        """
        if self.count is not None:
            raise BilevelError(
                f"{self.count} stacked games have different Jacobians, factors and best steps: "
                "compute them for a game before it is stacked"
            )
        parts = torch.func.jacrev(self.field, argnums=(0, 1))(*self.equilibrium)
        return torch.cat([torch.cat(row, 1) for row in parts])

    def factor(self, schedule: Schedule, lr: rates.Rate) -> float | None:
        """The predicted factor per step of the distance to the nearest equilibrium.

        Exact for a quadratic game, else valid near the equilibrium.

        Args:
            schedule: A schedule of the library.
            lr: The step sizes.

        Returns:
            The factor; None for constrained games, which the linear theory does not cover.

        Raises:
            BilevelError: If a step size is not positive, or the schedule is not known.

        Example:
            >>> from bilevel import Alternating, Extragradient
            >>> from bilevel.games import bilinear
            >>> round(bilinear().factor(Extragradient(), 0.5) ** 2, 6)       # 1 − η² + η⁴
            0.8125
            >>> round(bilinear().factor(Alternating(), 0.5), 6)              # circles
            1.0
        """
        if self._constrained:
            return None
        return rates.factor(schedule, self.jacobian(), len(self.equilibrium[0]), lr)

    def best_step(self, schedule: Schedule) -> float | None:
        """The step size with the smallest :meth:`factor`.

        Args:
            schedule: A schedule of the library.

        Returns:
            The step size; None if the players converge at no step size, or for constrained games.

        Example:
            >>> from bilevel import Optimistic, Simultaneous
            >>> from bilevel.games import bilinear
            >>> round(bilinear().best_step(Optimistic()), 6)
            0.5
            >>> bilinear().best_step(Simultaneous())
        """
        if self._constrained:
            return None
        jacobian, size = self.jacobian(), len(self.equilibrium[0])
        scale = float(torch.linalg.matrix_norm(jacobian, 2))
        if scale == 0:  # no step is in proportion to it
            return None
        return rates.best_step(lambda lr: rates.factor(schedule, jacobian, size, lr), scale)

    @property
    def _constrained(self) -> bool:
        return type(self).onto is not Game.onto or type(self).project is not Game.project

    def _values(self, x: Tensor, y: Tensor) -> Tensor:
        value = self.value if self.count is None else torch.func.vmap(self.value)
        values = value(x, y, *self.coefficients)
        if values.shape != (() if self.count is None else (self.count,)):
            raise BilevelError(
                f"{type(self).__name__}.value gives shape {tuple(values.shape)}: the players' "
                "gradients need one number; return a scalar, such as the sum"
            )
        return values


def stack(games: Sequence[Game]) -> Game:
    """Batches games of one kind, by ``torch.func.vmap``; one step moves them all.

    Each moves as it would alone; with :class:`~bilevel.CompetitiveGradient`, which solves one
    system for all, up to its tolerance times the largest game's field.

    Args:
        games: G games whose vectors have the same lengths.

    Returns:
        A game whose x is ``(G, n)`` and whose y is ``(G, m)``.

    Raises:
        BilevelError: If there are none, or they differ in kind or size, or in an attribute that is
            no coefficient, or one is a stack.

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
    for game in games:
        _check_settings(game, games[0])
    stacked = copy(games[0])
    stacked.count = len(games)
    x, y = (torch.stack(part) for part in zip(*(game.equilibrium for game in games), strict=True))
    stacked.equilibrium = (x, y)
    coefficients = zip(*(game.coefficients for game in games), strict=True)
    stacked.coefficients = tuple(torch.stack(parts) for parts in coefficients)
    return stacked


def _check_settings(game: Game, first: Game) -> None:
    """Refuses a stack, and other attributes than the first game's, which are those of the stack."""
    if game.count is not None:
        raise BilevelError(
            f"a stack of {game.count} games cannot be stacked: value is mapped over single games; "
            "stack those, all at once"
        )
    stacked = {"equilibrium", "coefficients", "count", "start"}
    for name in {**vars(first), **vars(game)}.keys() - stacked:
        if _differ(vars(game).get(name), vars(first).get(name)):
            raise BilevelError(
                f"games that differ in {name} cannot be stacked: value would read the first one's; "
                "give tensors to Game.__init__ as coefficients, which value gets as arguments"
            )


def _differ(one: object, other: object) -> bool:
    (parts, form), (others, other_form) = tree_flatten(one), tree_flatten(other)
    return form != other_form or not all(map(_equal, parts, others))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return np.array_equal(one, other)  # of other objects, whether they are equal
