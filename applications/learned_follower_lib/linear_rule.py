"""What a learned follower has learned: its moves, told by what it sees, in three numbers."""

from __future__ import annotations

from typing import Any

import torch

from bilevel.updates.base import State
from learned_follower_lib.random_games import Start
from learned_follower_lib.training import ESCAPED
from learned_follower_lib.updates import GradientDifference, ScaledGRU


@torch.no_grad()
def read_off(update: ScaledGRU, start: Start, steps: int) -> tuple[GradientDifference, float]:
    """The :class:`GradientDifference` nearest to what the update does, by least squares.

    Args:
        update: Plays simultaneously with gradient descent of the same step size.
        start: On these games.
        steps: For so many steps; each counts in units of the update's own scale r.

    Returns:
        The rule, and which share of the moves' mean square it explains.
    """
    game, x, y = start
    first = start.distance(x, y)
    state: State = None
    seen, moves = [], []
    for _ in range(steps):
        slope, descent = game.field(x, y)
        before = state[:2] if state else None
        y, state = update(y, -descent, None, state)
        x = x - update.step * slope
        gradient, move, scale, _ = state
        inside = (start.distance(x, y) < ESCAPED * first).repeat_interleave(y.shape[-1])
        if before:
            parts = [gradient, gradient - before[0], before[1], move]
            rows = torch.stack(parts, -1)[inside] / scale[inside].unsqueeze(-1)
            seen.append(rows[:, :3])
            moves.append(rows[:, 3:])
    given, wanted = torch.cat(seen).cpu(), torch.cat(moves).cpu()  # CUDA needs full rank
    numbers = torch.linalg.lstsq(given, wanted).solution
    missed = (wanted - given @ numbers).square().sum() / wanted.square().sum()
    return GradientDifference(update.step, *numbers.flatten().tolist()), 1 - float(missed)


def told(setting: str, seed: int, rule: GradientDifference, explained: float) -> dict[str, Any]:
    """The record of a rule.

    Args:
        setting: Where it was read off.
        seed: Of which follower.
        rule: The rule.
        explained: Its share.

    Returns:
        Its numbers, and the factor that it should have on the bilinear game with a = 1.
    """
    return {
        "record": "rule",
        "setting": setting,
        "seed": seed,
        "alpha": rule.alpha,
        "beta": rule.beta,
        "gamma": rule.gamma,
        "explained": explained,
        "predicted_factor": rule.contraction(1.0),
    }
