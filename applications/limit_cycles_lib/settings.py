"""Settings: games with step sizes, starting points and numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bilevel import (
    Bilevel,
    BilevelError,
    CompetitiveGradient,
    Consensus,
    Schedule,
    SymplecticAdjustment,
    alias,
    games,
)
from bilevel.arguments import count
from bilevel.games import Game, rates

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    **alias.SCHEDULES,
    "consensus": lambda: Consensus(0.5),
    "symplectic-adjustment": lambda: SymplecticAdjustment(align=False),
    "competitive-gradient": CompetitiveGradient,
}
"""Constructors of the schedules by name; the last three read second derivatives."""

FARTHEST = 1e100
"""The largest entry of a start, of whose squares the sum is still a number."""


@dataclass(frozen=True)
class Setting:
    """A game with a step size and a starting point.

    Args:
        game: A key of :data:`SETTINGS`.
        step: η, of both players.
        start: Initial value of all entries of x, and of y; on simplices, the probability of each
            player's first strategy.
        steps: Number of steps.

    Raises:
        BilevelError: If an argument is out of range.
    """

    game: str
    step: float
    start: tuple[float, float]
    steps: int

    def __post_init__(self) -> None:
        rates.step_sizes(self.step)
        if not all(abs(entry) <= FARTHEST for entry in self.start):
            raise BilevelError(
                f"the start {self.start} is not finite or too far: distances are measured from it, "
                f"by their squares; give two numbers up to {FARTHEST:.0e}, such as 1 0"
            )
        if self.game == "simplex" and not all(0 <= share <= 1 for share in self.start):
            raise BilevelError(
                f"the start {self.start} of simplex is not on it: its numbers are probabilities of "
                "the first strategy; give two from 0 to 1, such as 0.8 0.1"
            )
        count("steps", self.steps)

    @property
    def title(self) -> str:
        """A title for tables and figures."""
        x, y = self.start
        return f"{self.game}, η = {self.step:g}, from ({x:g}, {y:g})"

    @property
    def name(self) -> str:
        """A name for files."""
        x, y = self.start
        return f"{self.game}-step-{self.step:.12g}-from-{x:.12g}-{y:.12g}"

    def begin(self, game: Game, schedule: str) -> Bilevel:
        """The players at the start."""
        x, y = (
            _mixed(share, like) if isinstance(game, games.MatrixGame) else share
            for share, like in zip(self.start, game.equilibrium, strict=True)
        )
        return games.begin(game, x, y, lr=self.step, schedule=SCHEDULES[schedule]())


def one_revolution(step: float = 1e-4) -> Setting:
    """Figures 7 and 8 of the paper: f(x, y) = xy from (1, 0), for one revolution."""
    return Setting("bilinear", step, (1.0, 0.0), max(1, round(2 * math.pi / step)))


def shortened(setting: Setting) -> Setting:
    """A shorter version: the paper's revolution in larger steps, of others the first 100 steps."""
    if setting == PAPER:
        return one_revolution(0.02)
    return replace(setting, steps=min(setting.steps, 100))


PAPER = one_revolution()
LARGER_STEP = Setting("bilinear", 0.3, (1.0, 0.0), 200)
FAR_START = Setting("forsaken", 0.05, (1.0, 1.0), 2000)
NEAR_START = Setting("forsaken", 0.05, (0.1, 0.4), 2000)
OVERVIEW = (PAPER, LARGER_STEP, FAR_START, NEAR_START)
"""The settings of the overview figure."""

SETTINGS = {
    "bilinear": (LARGER_STEP, PAPER),
    "matrix": (Setting("matrix", 0.3, (1.0, 0.0), 400),),
    "monotone": (Setting("monotone", 0.3, (1.0, 0.0), 200),),
    "forsaken": (FAR_START, NEAR_START),
    "dirac-gan": (Setting("dirac-gan", 0.5, (1.0, 1.0), 400),),
    "simplex": (Setting("simplex", 0.3, (0.8, 0.1), 200),),
}
"""The settings of each game; --step and --start modify the first, --steps all."""


def make_game(name: str, seed: int) -> Game:
    """The game of that name.

    Args:
        name: One of :data:`SETTINGS`.
        seed: Of the singular vectors of ``matrix``.

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


def _mixed(share: float, like: Tensor) -> Tensor:
    """The mixed strategy with probability ``share`` of the first pure one, the rest uniform."""
    strategy = torch.full_like(like, (1 - share) / (len(like) - 1))
    strategy[0] = share
    return strategy
