"""Batches of random bilinear, matrix and Forsaken games with random equilibria."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel import games
from bilevel.games import Game, Quadratic

BOUND = 1e6
"""Bound on every coordinate, so that diverging play ends with a finite distance."""


class Start(NamedTuple):
    """Stacked games and starting points of their players."""

    game: Game
    x: Tensor
    y: Tensor

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of (x, y) to the equilibrium of each game, ``(..., G)``."""
        difference = torch.cat([x, y], -1) - torch.cat(self.game.equilibrium, -1)
        norm: Tensor = torch.linalg.vector_norm(difference, dim=-1)
        return norm


class BoxConstrained(Game):
    """A game on the box [−:data:`BOUND`, :data:`BOUND`]."""

    def onto(self, z: Tensor) -> Tensor:
        """The nearest point of the box."""
        return z.clamp(-BOUND, BOUND)


class Bilinear(BoxConstrained, Quadratic):
    """(x − x*)ᵀ A (y − y*)."""


class Forsaken(BoxConstrained):
    """c k² F((x − p) / k, (y − q) / k): the Forsaken game F scaled and shifted.

    Args:
        strength: c, ``(1,)``.
        size: k, ``(1,)``.
        place: p and q, ``(2, 1)``.
    """

    def __init__(self, strength: Tensor, size: Tensor, place: Tensor) -> None:
        x, y = _forsaken().equilibrium
        super().__init__((place[0] + size * x, place[1] + size * y), strength, size, place)

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        """The value at (x, y)."""
        strength, size, (p, q) = coefficients
        return (strength * size**2).sum() * _forsaken().value((x - p) / size, (y - q) / size)


def make_generator(seed: int) -> torch.Generator:
    """A generator on the default device."""
    return torch.Generator(torch.empty(0).device).manual_seed(seed)


def bilinear(
    count: int, generator: torch.Generator, *, strength: tuple[float, float], size: int = 1
) -> Start:
    """Bilinear games with log-uniform singular values.

    Args:
        count: G.
        generator: The source of randomness.
        strength: Smallest and largest singular value (of scalar games: a).
        size: Dimension of each player.

    Returns:
        The games; each coordinate of an equilibrium is in [−2, 2], and of a start within 1.5 of it.
    """
    matrices = torch.diag_embed(_log_uniform(strength, (count, size), generator))
    if size > 1:
        left, right = torch.linalg.qr(
            torch.randn(2, count, size, size, dtype=torch.float64, generator=generator)
        ).Q
        matrices = left @ matrices @ right
    stars = _uniform(2, (2, count, size), generator)
    game = games.stack(
        [Bilinear(matrix, 0.0, (x, y)) for matrix, x, y in zip(matrices, *stars, strict=True)]
    )
    return Start(game, *(stars + _uniform(1.5, (2, count, size), generator)))


def forsaken(count: int, generator: torch.Generator, *, strength: tuple[float, float]) -> Start:
    """Forsaken games with k in [½, 2] and log-uniform c and k.

    Args:
        count: G.
        generator: The source of randomness.
        strength: Smallest and largest c.

    Returns:
        The games, shifted by (p, q) in [−2, 2]²; a start is (p, q) + k u with u in [−1.5, 1.5]².
    """
    c = _log_uniform(strength, (count, 1), generator)
    k = _log_uniform((0.5, 2.0), (count, 1), generator)
    place = _uniform(2, (count, 2, 1), generator)
    game = games.stack([Forsaken(*one) for one in zip(c, k, place, strict=True)])
    start = place.transpose(0, 1) + k * _uniform(1.5, (2, count, 1), generator)
    return Start(game, *start)


@cache
def _forsaken() -> games.Forsaken:
    return games.Forsaken()


def _uniform(bound: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return bound * (2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1)


def _log_uniform(
    bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    low, high = (math.log(bound) for bound in bounds)
    share = torch.rand(shape, dtype=torch.float64, generator=generator)
    return (low + (high - low) * share).exp()
