"""Meta-training: play is unrolled with both players in the graph, and the path is the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bilevel.updates.base import State, Update
from learned_follower_lib.random_games import Start, bilinear, forsaken, random_numbers

STRENGTH = (0.5, 2.0)
"""Of the games that are trained on."""

ESCAPED = 30.0
"""In units of the first distance."""

FLOOR = 1e-12
"""Likewise: what is nearer has converged."""

TRUNCATION = 15
"""Steps after which the graph is cut: gradients through longer play explode."""


@dataclass(frozen=True)
class Plan:
    """How a follower is trained.

    Args:
        step: η of both players.
        iterations: Steps of Adam.
        games: Games in a batch, half bilinear and half Forsaken.
        horizon: Steps of play in the end; the first half of training gets there from 10.
    """

    step: float
    iterations: int
    games: int
    horizon: int

    def steps(self, iteration: int) -> int:
        """How long play lasts in an iteration."""
        grown = min(1.0, 2 * iteration / self.iterations)
        first = min(10, self.horizon)
        return round(first + grown * (self.horizon - first))


def train(
    update: Update, plan: Plan, seed: int, report: Callable[[int, dict[str, float]], None]
) -> None:
    """Minimises the mean logarithm of the distance to the equilibrium, relative to the first.

    Of the logarithm, since a follower should go on converging however near it is.

    Args:
        update: Is trained.
        plan: How.
        seed: Of the games.
        report: Is told the iterations done and their loss.
    """
    generator = random_numbers(seed)
    optimizer = torch.optim.Adam(update.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.iterations)
    for iteration in range(plan.iterations):
        optimizer.zero_grad()
        losses = []
        for sample in (bilinear, forsaken):
            start = sample(plan.games // 2, generator, strength=STRENGTH)
            paths = list(unroll(update, start, plan.steps(iteration), plan.step))
            losses.append(torch.cat([path.log().flatten() for path in paths]).mean())
        loss = (losses[0] + losses[1]) / 2
        loss.backward()
        # The direction is all that is left of most gradients, whose size spans many orders.
        norm = nn.utils.clip_grad_norm_(update.parameters(), 0.1)
        if norm.isfinite():
            optimizer.step()
        schedule.step()
        report(iteration + 1, {"loss": loss.item()})


def unroll(update: Update, start: Start, steps: int, step: float) -> Iterator[Tensor]:
    """Simultaneous play of the update against gradient descent, differentiably.

    Args:
        update: The follower's step rule.
        start: G games.
        steps: How many steps are played.
        step: η of the leader.

    Yields:
        After each step the distance to the equilibrium, in units of the first, ``(G,)``. A game
        that has escaped stays where it was, outside the graph, lest its gradients be all there is.
    """
    game, x, y = start
    first, state = start.distance(x, y), None
    for taken in range(steps):
        if taken % TRUNCATION == 0:
            x, y, state = x.detach(), y.detach(), _detach(state)
        slope, descent = game.field(x, y)
        moved, state = update(y, -descent, None, state)
        inside = start.distance(x - step * slope, moved) < ESCAPED * first
        x = torch.where(inside.unsqueeze(-1), x - step * slope, x.detach())
        y = torch.where(inside.unsqueeze(-1), moved, y.detach())
        yield torch.where(inside, start.distance(x, y) / first, ESCAPED) + FLOOR


def _detach(state: State) -> State:
    return None if state is None else tuple(part.detach() for part in state)
