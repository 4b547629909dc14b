"""Players of a game that move by gradient steps, and their trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.game import Bilevel
from bilevel.games import rates
from bilevel.games.game import Game
from bilevel.problem import ZeroSum
from bilevel.schedules import Lookahead, Schedule, SymplecticAdjustment
from bilevel.solvers import Parametric, Solver

Start = float | Sequence[float] | Tensor
"""A player's vector, or a number for all its coordinates."""


class Point(nn.Module):
    """A trainable vector.

    Args:
        x: Its initial value.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x.clone())


class Leader(ZeroSum):
    """The leader of a :class:`Game`: its vector is ``model.x``."""

    follower: Game
    model: Point

    def project(self) -> None:
        """Projects x onto the game's constraints."""
        x = self.model.x.detach()
        projected = self.follower.onto(x)
        if projected is not x:
            x.copy_(projected)


def begin(
    game: Game,
    x: Start,
    y: Start,
    *,
    lr: rates.Rate,
    schedule: Schedule | None = None,
    solver: Solver | None = None,
) -> Bilevel:
    """Builds a game whose players start at a point and take gradient steps.

    Args:
        game: The game, or stacked ones.
        x: The leader's start: a number, ``(n,)``, or ``(G, n)`` for G stacked games.
        y: The follower's start, likewise.
        lr: The step sizes.
        schedule: As in :class:`~bilevel.Bilevel`.
        solver: A solver of the follower that is not trained; by default the follower takes
            gradient steps like the leader.

    Returns:
        A game whose ``step(None)`` moves the players.

    Raises:
        BilevelError: If a step size is not positive, a start has a wrong shape, or the schedule
            chooses one sign for all stacked games.

    Example:
        >>> from bilevel.games import bilinear
        >>> game = begin(bilinear(), 1.0, 0.0, lr=0.1)
        >>> [trajectory(game, 1)[1].tolist()]
        [[1.0, 0.1]]
    """
    leader_lr, follower_lr = rates.step_sizes(lr)
    if game.count is not None:
        _check_apart(schedule)
    game = copy(game)
    start, game.start = (
        game.onto(_point(z, like)) for z, like in zip((x, y), game.equilibrium, strict=True)
    )
    leader = Leader(Point(start), game)
    solver_opt = None
    if solver is None:
        solver = Parametric(game.start)
        solver_opt = torch.optim.SGD(solver.parameters(), follower_lr)
    return Bilevel(
        leader,
        game,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), leader_lr),
        solver_opt=solver_opt,
        schedule=schedule,
    )


def position(game: Bilevel) -> Tensor:
    """The current point of the players.

    Args:
        game: A game of :func:`begin`, with its default solver.

    Returns:
        x and y concatenated, ``(n + m,)`` or ``(G, n + m)``.
    """
    return torch.cat([*game.trained_parameters().values()], -1)


def trajectory(game: Bilevel, steps: int) -> Tensor:
    """Takes steps and records the players' positions.

    Args:
        game: A game of :func:`begin`, with its default solver.
        steps: The number of steps.

    Returns:
        The initial position and the one after each step, ``(steps + 1, ..., n + m)``.
    """
    path = [position(game)]
    for _ in range(steps):
        game.step(None)
        path.append(position(game))
    return torch.stack(path)


def _check_apart(schedule: Schedule | None) -> None:
    """Checks that stacked games move as each would alone."""
    inner = schedule
    while isinstance(inner, Lookahead):
        inner = inner.inner
    if isinstance(inner, SymplecticAdjustment) and inner.align:
        raise BilevelError(
            f"{inner!r} chooses one sign for all stacked games, where each would choose its own: "
            "give align=False, or play them one by one"
        )


def _point(z: Start, like: Tensor) -> Tensor:
    point = torch.as_tensor(z, dtype=like.dtype, device=like.device)
    point = point.expand(like.shape) if point.dim() == 0 else point
    if point.shape != like.shape:
        raise BilevelError(
            f"the start has shape {tuple(point.shape)}: the game is played with "
            f"{tuple(like.shape)}; give that shape, or one number"
        )
    return point
