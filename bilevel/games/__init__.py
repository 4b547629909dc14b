r"""Two-player games with known equilibria, for testing schedules and solvers.

All are zero-sum, min over x, max over y of f(x, y), with vectors x and y:

    bilinear(a)                a x y                                cycles
    Bilinear(A)                xᵀ A y                               the same in many planes
    Quadratic(A, μ, (x*, y*))  the same around x*, y*, + μ/2 (‖x‖² − ‖y‖²)
    strongly_monotone(μ)       μ/2 x² + x y − μ/2 y²                contracts under small steps
    Forsaken()                 x (y − 0.45) + φ(x) − φ(y)           a limit cycle around it
    DiracGAN()                 −log(1 + exp(−x y)) − log 2          the smallest GAN
    MatrixGame(A)              xᵀ A y on two simplices              needs projections

The Jacobian of a game's field at its equilibrium gives the convergence rate of a schedule
(:mod:`bilevel.games.rates`). :func:`begin` builds a game that starts at a point::

    game = games.begin(games.bilinear(), 1.0, 0.0, lr=0.1, schedule=Extragradient())
    path = games.trajectory(game, steps=1000)

:func:`stack` batches many games of one kind, so that one step moves them all.
"""

from bilevel.games.game import Game, stack
from bilevel.games.players import Leader, begin, position, trajectory
from bilevel.games.suite import (
    Bilinear,
    DiracGAN,
    Forsaken,
    MatrixGame,
    Quadratic,
    bilinear,
    strongly_monotone,
)

__all__ = [
    "Bilinear",
    "DiracGAN",
    "Forsaken",
    "Game",
    "Leader",
    "MatrixGame",
    "Quadratic",
    "begin",
    "bilinear",
    "position",
    "stack",
    "strongly_monotone",
    "trajectory",
]
