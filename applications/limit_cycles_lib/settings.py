"""What is played: games, schedules, step sizes and starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bilevel import Bilevel, BilevelError, games
from bilevel.alias import SCHEDULES
from bilevel.games import Game, rates


@dataclass(frozen=True)
class Setting:
    """A game, a step size, a start.

    Args:
        game: A name of :data:`SETTINGS`.
        step: η, of both players.
        start: Where all numbers of x and of y start; on simplices, the share of each player's
            first strategy.
        steps: How many are played.

    Raises:
        BilevelError: If nothing can be played like this.
    """

    game: str
    step: float
    start: tuple[float, float]
    steps: int

    def __post_init__(self) -> None:
        rates.step_sizes(self.step)
        if not all(map(math.isfinite, self.start)):
            raise BilevelError(
                f"the start {self.start} is no point: the distance from it is measured; give two "
                "finite numbers, such as 1 0"
            )
        if self.steps < 1:
            raise BilevelError(f"steps is {self.steps}: nothing is played; give 1 or more")

    @property
    def title(self) -> str:
        """For people."""
        x, y = self.start
        return f"{self.game}, η = {self.step:g}, from ({x:g}, {y:g})"

    @property
    def name(self) -> str:
        """For files."""
        x, y = self.start
        return f"{self.game}-step-{self.step:.12g}-from-{x:.12g}-{y:.12g}"

    def begin(self, game: Game, schedule: str) -> Bilevel:
        """The players at the start."""
        x, y = (
            _mixed(game, share, like) if isinstance(game, games.MatrixGame) else share
            for share, like in zip(self.start, game.equilibrium, strict=True)
        )
        return games.begin(game, x, y, lr=self.step, schedule=SCHEDULES[schedule]())


def once_around(step: float = 1e-4) -> Setting:
    """Figures 7 and 8 of the paper: f(x, y) = xy from (1, 0), for a whole turn."""
    return Setting("bilinear", step, (1.0, 0.0), max(1, round(2 * math.pi / step)))


def quick(setting: Setting) -> Setting:
    """The same in a second: the paper's turn in larger steps, of others the beginning."""
    if setting == PAPER:
        return once_around(0.02)
    return replace(setting, steps=min(setting.steps, 100))


PAPER = once_around()
CLEARER = Setting("bilinear", 0.3, (1.0, 0.0), 200)
AFAR = Setting("forsaken", 0.05, (1.0, 1.0), 2000)
NEARBY = Setting("forsaken", 0.05, (0.1, 0.4), 2000)
PAGE = (PAPER, CLEARER, AFAR, NEARBY)
"""What the page for a lecture shows."""

SETTINGS = {
    "bilinear": (CLEARER, PAPER),
    "matrix": (Setting("matrix", 0.3, (1.0, 0.0), 400),),
    "monotone": (Setting("monotone", 0.3, (1.0, 0.0), 200),),
    "forsaken": (AFAR, NEARBY),
    "dirac-gan": (Setting("dirac-gan", 0.5, (1.0, 1.0), 400),),
    "simplex": (Setting("simplex", 0.3, (0.8, 0.1), 200),),
}
"""How each game is played; the first also with other steps and starts."""


def make_game(name: str, seed: int) -> Game:
    """The game of that name.

    Args:
        name: One of :data:`SETTINGS`.
        seed: Of the planes in which ``matrix`` turns.

    Returns:
        The game.
    """
    if name == "matrix":
        left, right = np.linalg.qr(np.random.default_rng(seed).normal(size=(2, 3, 3))).Q
        return games.Bilinear(torch.tensor(left @ np.diag([1, 0.7, 0.4]) @ right))
    rock_paper_scissors = torch.tensor([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype=torch.float64)
    makers: dict[str, Callable[[], Game]] = {
        "bilinear": games.bilinear,
        "monotone": lambda: games.strongly_monotone(0.3),
        "forsaken": games.Forsaken,
        "dirac-gan": games.DiracGAN,
        "simplex": lambda: games.MatrixGame(rock_paper_scissors),
    }
    return makers[name]()


def _mixed(game: Game, share: float, like: Tensor) -> Tensor:
    """The mixed strategy with that share of the first pure one and of the others alike."""
    strategy = torch.full_like(like, (1 - share) / (len(like) - 1))
    strategy[0] = share
    return game.onto(strategy)
