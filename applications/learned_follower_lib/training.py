"""Meta-training of a step rule through unrolled play."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bilevel.updates.base import State, Update
from learned_follower_lib.random_games import Start, bilinear, forsaken, make_generator

STRENGTH = (0.5, 2.0)
"""Range of a and c in the training games."""

STOPPED_AT = 30.0
"""Training games at this distance, relative to the initial one, are stopped."""

FLOOR = 1e-12
"""Added to the relative distance before taking its logarithm."""

TRUNCATION = 15
"""Steps of truncated backpropagation: gradients through longer play explode."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a follower is trained.

    Args:
        step: η of both players.
        iterations: Steps of Adam.
        games: Games per batch, half bilinear and half Forsaken.
        horizon: Steps of play; grows linearly from 10 in the first half of training.
    """

    step: float
    iterations: int
    games: int
    horizon: int

    def steps(self, iteration: int) -> int:
        """The number of steps of play in an iteration."""
        grown = min(1.0, 2 * iteration / self.iterations)
        first = min(10, self.horizon)
        return round(first + grown * (self.horizon - first))


def train(
    update: Update,
    config: TrainingConfig,
    seed: int,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Minimises the mean logarithm of the relative distance to the equilibrium over trajectories.

    The logarithm rewards convergence at any distance.

    Args:
        update: The update to train.
        config: The configuration.
        seed: Of the games.
        report: Called with the number of completed iterations and the loss.
    """
    generator = make_generator(seed)
    optimizer = torch.optim.Adam(update.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    for iteration in range(config.iterations):
        optimizer.zero_grad()
        losses = []
        for sample in (bilinear, forsaken):
            start = sample(config.games // 2, generator, strength=STRENGTH)
            ratios = list(unroll(update, start, config.steps(iteration), config.step))
            losses.append(torch.cat([ratio.log().flatten() for ratio in ratios]).mean())
        loss = (losses[0] + losses[1]) / 2
        loss.backward()
        # Gradient norms span many orders of magnitude: most steps keep the direction only.
        norm = nn.utils.clip_grad_norm_(update.parameters(), 0.1)
        if norm.isfinite():
            optimizer.step()
        schedule.step()
        report(iteration + 1, {"loss": loss.item()})


def unroll(update: Update, start: Start, steps: int, step: float) -> Iterator[Tensor]:
    """Differentiable simultaneous play of an update against gradient descent.

    Args:
        update: The follower's step rule.
        start: G games.
        steps: Number of steps.
        step: η of the leader.

    Yields:
        After each step the distance to the equilibrium, relative to the initial one, ``(G,)``. A
        game that has diverged is frozen and detached, so that its gradients do not dominate.
    """
    game, x, y = start
    initial, state = start.distance(x, y), None
    for taken in range(steps):
        if taken % TRUNCATION == 0:
            x, y, state = x.detach(), y.detach(), _detach(state)
        gradient_x, descent_y = game.field(x, y)
        new_x = x - step * gradient_x
        new_y, state = update(y, -descent_y, None, state)
        kept = start.distance(new_x, new_y) < STOPPED_AT * initial
        x = torch.where(kept.unsqueeze(-1), new_x, x.detach())
        y = torch.where(kept.unsqueeze(-1), new_y, y.detach())
        yield torch.where(kept, start.distance(x, y) / initial, STOPPED_AT) + FLOOR


def _detach(state: State) -> State:
    return None if state is None else tuple(part.detach() for part in state)
