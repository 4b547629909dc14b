"""Random bilinear, matrix and Forsaken games with random equilibria, side by side."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel import games
from bilevel.games import Game, Quadratic

FAR = 1e6
"""Where players who escape are held, so that a run that has failed ends with a number."""


class Start(NamedTuple):
    """Stacked games and where their players stand."""

    game: Game
    x: Tensor
    y: Tensor

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each game the distance of (x, y) to the equilibrium, ``(..., G)``."""
        apart = torch.cat([x, y], -1) - torch.cat(self.game.equilibrium, -1)
        away: Tensor = torch.linalg.vector_norm(apart, dim=-1)
        return away


class Wide(Game):
    """A game on a box that is far wider than any play that gets somewhere."""

    def onto(self, z: Tensor) -> Tensor:
        """The nearest point of the box."""
        return z.clamp(-FAR, FAR)


class Bilinear(Wide, Quadratic):
    """(x − x*)ᵀ A (y − y*)."""


class Forsaken(Wide):
    """c k² F((x − p) / k, (y − q) / k) of the Forsaken game F: another steepness, size and place.

    Args:
        strength: c, ``(1,)``.
        size: k, ``(1,)``.
        place: p and q, ``(2, 1)``.
    """

    def __init__(self, strength: Tensor, size: Tensor, place: Tensor) -> None:
        x, y = _forsaken().equilibrium
        super().__init__((place[0] + size * x, place[1] + size * y), strength, size, place)

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        """The game at another place."""
        strength, size, (p, q) = coefficients
        return (strength * size**2).sum() * _forsaken().value((x - p) / size, (y - q) / size)


def random_numbers(seed: int) -> torch.Generator:
    """A generator on the device where tensors are made by default."""
    return torch.Generator(torch.empty(0).device).manual_seed(seed)


def bilinear(
    count: int, generator: torch.Generator, *, strength: tuple[float, float], size: int = 1
) -> Start:
    """Bilinear games whose singular values are drawn evenly in their logarithm.

    Args:
        count: G.
        generator: Where the numbers come from.
        strength: Least and greatest singular value; of one number, a.
        size: Numbers of each player.

    Returns:
        The games, with an equilibrium in [−2, 2] and a start within 1.5 of it in each number.
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
    """Forsaken games of sizes from ½ to 2.

    Args:
        count: G.
        generator: Where the numbers come from.
        strength: Least and greatest c; drawn evenly in its logarithm.

    Returns:
        The games, at a place in [−2, 2]², with a start in [−1.5, 1.5]² of their own units.
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
