"""A linear rule with three coefficients, fitted to the moves of a learned follower."""

from __future__ import annotations

from typing import Any

import torch

from bilevel.updates.base import State
from learned_follower_lib.random_games import Start
from learned_follower_lib.training import STOPPED_AT
from learned_follower_lib.updates import GradientDifference, ScaledGRU


@torch.no_grad()
def fit_rule(update: ScaledGRU, start: Start, steps: int) -> tuple[GradientDifference, float]:
    """Fits a :class:`GradientDifference` to the moves of an update, by least squares.

    Args:
        update: The update; it plays simultaneously against gradient descent with its step size.
        start: The games.
        steps: Number of steps; each is divided by the update's scale r.

    Returns:
        The rule, and the fraction of the moves' mean square that it explains.
    """
    game, x, y = start
    initial = start.distance(x, y)
    state: State = None
    inputs, moves = [], []
    for _ in range(steps):
        gradient_x, descent_y = game.field(x, y)
        previous = state[:2] if state else None
        y, state = update(y, -descent_y, None, state)
        x = x - update.step * gradient_x
        gradient, move, scale, _ = state
        kept = (start.distance(x, y) < STOPPED_AT * initial).repeat_interleave(y.shape[-1])
        if previous:
            last_gradient, last_move = previous
            columns = [gradient, gradient - last_gradient, last_move, move]
            rows = torch.stack(columns, -1)[kept] / scale[kept].unsqueeze(-1)
            inputs.append(rows[:, :3])
            moves.append(rows[:, 3:])
    a, b = torch.cat(inputs).cpu(), torch.cat(moves).cpu()  # lstsq on CUDA needs full rank
    coefficients = torch.linalg.lstsq(a, b).solution
    unexplained = (b - a @ coefficients).square().sum() / b.square().sum()
    rule = GradientDifference(update.step, *coefficients.flatten().tolist())
    return rule, 1 - float(unexplained)


def rule_record(
    setting: str, seed: int, rule: GradientDifference, explained: float
) -> dict[str, Any]:
    """The record of a rule.

    Args:
        setting: The setting that it was fitted in.
        seed: Of the follower.
        rule: The rule.
        explained: The explained fraction.

    Returns:
        Its coefficients, and its predicted factor on the bilinear game with a = 1.
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
