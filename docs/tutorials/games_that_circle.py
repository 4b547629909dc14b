r"""
Min-max games that cycle
========================

Two players who each follow their own gradient need not converge. On :math:`f(x, y) = xy`, which
:math:`x` minimises and :math:`y` maximises, simultaneous steps spiral away from the equilibrium
:math:`(0, 0)`, and alternating steps circle around it (Jiang et al., 2021, Appendix A). Which
schedule converges, how fast, and how can you see it in a game of your own, whose equilibrium is
unknown?
"""

# %%
# The same game under every schedule
# ----------------------------------
#
# ``bilevel.games`` has games with known equilibria. :func:`~bilevel.games.begin` places the players
# at a point, :func:`~bilevel.games.trajectory` plays and returns the iterates.

import textwrap

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import bilevel
from bilevel import games

schedules = [
    bilevel.Simultaneous(),
    bilevel.Alternating(),
    bilevel.Extragradient(),
    bilevel.Optimistic(),
    bilevel.Lookahead(steps=5),
]
eta = 0.3
game = games.bilinear()
figure, (plane, distance) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
for schedule in schedules:
    play = games.begin(game, 1.0, 0.0, lr=eta, schedule=schedule)
    path = games.trajectory(play, 60)
    plane.plot(*path.T, label=type(schedule).__name__)
    distance.semilogy(path.norm(dim=1))
plane.set(xlim=(-2, 2), ylim=(-2, 2), xlabel="x", ylabel="y", aspect="equal")
distance.set(xlabel="steps", ylabel="distance to the equilibrium")
plane.legend(fontsize="small", loc="lower left")
plt.show()

# %%
# Convergence rates
# -----------------
#
# Near an equilibrium a step is a linear map, and the distance changes by its spectral radius per
# step. ``factor`` returns it, and ``best_step`` the step size that minimises it.

for schedule in schedules:
    best = game.best_step(schedule)
    at_best = "no step converges" if best is None else f"best step {best:.3f}"
    print(f"{schedule!r:45} × {game.factor(schedule, eta):.4f} a step; {at_best}")

# %%
# A schedule of your own
# ----------------------
#
# A schedule is one method, ``step(game, batch)``. This one pulls each simultaneous step toward the
# starting point with a decreasing weight (anchoring, as in Ryu et al., 2019). The games show where
# it converges: from outside, Forsaken's attracting cycle around its equilibrium holds it.


class Anchored(bilevel.Simultaneous):
    """w ← w + D(w) + (anchor − w) / (t + 2)."""

    def __init__(self) -> None:
        self.anchor: list[Tensor] | None = None

    def step(self, game, batch):
        players = [*game.trained_parameters().values()]
        if self.anchor is None:
            self.anchor = [player.clone() for player in players]
        pull = [(a - w) / (game.steps + 2) for a, w in zip(self.anchor, players, strict=True)]
        metrics = super().step(game, batch)
        for player, part in zip(players, pull, strict=True):
            player.add_(part)
        return metrics


for name, one, start in (
    ("bilinear", games.bilinear(), (1.0, 0.0)),
    ("Forsaken", games.Forsaken(), (1.0, 1.0)),
    ("Dirac-GAN", games.DiracGAN(), (1.0, 1.0)),
):
    path = games.trajectory(games.begin(one, *start, lr=0.05, schedule=Anchored()), 2000)
    away = (path - torch.cat(one.equilibrium)).norm(dim=1)
    print(f"{name}: distance {away[0]:.3f} at the start, {away[-1]:.3f} at the end")

# %%
# Many games at once
# ------------------
#
# One game is not enough evidence. ``stack`` batches games of one kind, and one step moves them all
# (``torch.func.vmap``).

torch.manual_seed(0)
random_games = [games.Bilinear(torch.randn(3, 3, dtype=torch.float64)) for _ in range(500)]
many = games.stack(random_games)
for schedule in schedules:
    path = games.trajectory(games.begin(many, 1.0, 1.0, lr=0.1, schedule=schedule), 500)
    shrunk = path[-1].norm(dim=1) / path[0].norm(dim=1)
    print(f"{schedule!r:45} {(shrunk < 1).double().mean():4.0%} of 500 games got closer")

# %%
# A game whose equilibrium is unknown
# -----------------------------------
#
# :class:`~bilevel.Monitor` observes the iterates of any game and reports whether they converge,
# cycle or diverge. It records a few numbers of each player, so its cost is small for a network.
# Forsaken is played from outside of its cycle, where both schedules stay, and from near its
# equilibrium.

for schedule in (bilevel.Alternating(), bilevel.Extragradient()):
    play = games.begin(games.Forsaken(), 1.0, 1.0, lr=0.05, schedule=schedule)
    near = games.begin(games.Forsaken(), 0.1, 0.4, lr=0.05, schedule=schedule)
    for one in (play, near):
        monitor = bilevel.Monitor(one)
        for _ in range(3000):
            one.step(None)
            monitor.observe()
        print(textwrap.fill(f"{schedule!r}: {monitor.verdict()}", 80))
