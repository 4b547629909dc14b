"""Unseen games are played by a learned follower and by the known methods, and told in records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bilevel import Alternating, Extragradient, Iterative, Optimistic, Simultaneous, games
from bilevel.schedules import Schedule
from bilevel.tree import leaves
from learned_follower_lib.random_games import Start, bilinear, forsaken, random_numbers
from learned_follower_lib.training import STRENGTH
from learned_follower_lib.updates import AtOnce, GradientDifference, ScaledGRU

Rule = ScaledGRU | GradientDifference

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "gda": Simultaneous,
    "alternating": Alternating,
    "optimistic": Optimistic,
    "extragradient": Extragradient,
}
"""In which both players take gradient steps."""

CONVERGED, ESCAPED = 1e-3, 1e3
"""What a game's last distance is called, in units of its first."""


@dataclass(frozen=True)
class Setting:
    """Unseen games of one kind.

    Args:
        sample: Draws them.
        lr: Step sizes of leader and follower, in units of the one that was trained with.
    """

    sample: Callable[[int, torch.Generator], Start]
    lr: tuple[float, float] = (1.0, 1.0)


_BILINEAR = partial(bilinear, strength=STRENGTH)
_FORSAKEN = partial(forsaken, strength=STRENGTH)

SETTINGS = {
    "bilinear": Setting(_BILINEAR),
    "forsaken": Setting(_FORSAKEN),
    # What was not trained on.
    "bilinear, a in [1/8, 1/2]": Setting(partial(bilinear, strength=(0.125, 0.5))),
    "bilinear, a in [2, 4]": Setting(partial(bilinear, strength=(2.0, 4.0))),
    "bilinear, leader's step halved": Setting(_BILINEAR, (0.5, 1.0)),
    "bilinear, leader's step doubled": Setting(_BILINEAR, (2.0, 1.0)),
    "matrix 5×5": Setting(partial(_BILINEAR, size=5)),
    "forsaken, both steps halved": Setting(_FORSAKEN, (0.5, 0.5)),
}
"""By name; the first two are the family of the training."""


def play(
    start: Start,
    lr: tuple[float, float],
    steps: int,
    schedule: Schedule | None = None,
    solver: Iterative | None = None,
) -> Tensor:
    """Plays stacked games.

    Args:
        start: The games.
        lr: Step sizes of leader and follower; a solver has its own.
        steps: How many.
        schedule: As in :func:`bilevel.games.begin`.
        solver: Likewise.

    Returns:
        Where the players were, x and y side by side, ``(steps + 1, G, n + m)``.
    """
    game = games.begin(start.game, start.x, start.y, lr=lr, schedule=schedule, solver=solver)
    if solver is None:
        return games.trajectory(game, steps)
    path = [torch.cat([start.x, start.y], -1)]
    for _ in range(steps):
        game.step(None)
        y, _ = solver.get_extra_state() or (start.y, None)
        path.append(torch.cat([*game.trained_parameters(), *leaves(y)], -1))
    return torch.stack(path)


def by_schedule(name: str) -> Callable[[Start, tuple[float, float], int], Tensor]:
    """How a known method plays.

    Args:
        name: Of :data:`SCHEDULES`.

    Returns:
        :func:`play` with it.
    """
    return lambda start, lr, steps: play(start, lr, steps, SCHEDULES[name]())


def by_update(
    update: Rule, solver: Callable[[Rule], Iterative] = AtOnce
) -> Callable[[Start, tuple[float, float], int], Tensor]:
    """How a follower with its own step rule plays against gradient descent.

    Args:
        update: The rule, whose ``step`` becomes the follower's step size.
        solver: Makes the solver.

    Returns:
        :func:`play` with it.
    """

    def played(start: Start, lr: tuple[float, float], steps: int) -> Tensor:
        rule = deepcopy(update).requires_grad_(False)
        rule.step = lr[1]
        return play(start, lr, steps, solver=solver(rule))

    return played


def distances(start: Start, path: Tensor) -> Tensor:
    """How far the players were from the equilibrium, in units of their first distance.

    Args:
        start: The games.
        path: What :func:`play` returned.

    Returns:
        ``(steps + 1, G)``.
    """
    size = start.x.shape[-1]
    away = start.distance(path[..., :size], path[..., size:])
    return away / away[0]


def summary(ratio: Tensor, horizon: int) -> dict[str, float]:
    """What came of many games, at the training's horizon and at the end.

    Args:
        ratio: Distances of all games, ``(steps + 1, G)``.
        horizon: The training's.

    Returns:
        Quartiles of the distance and of the factor a step, and shares of the games.
    """
    last = ratio[-1]
    return {
        **_quartiles("distance_at_horizon", ratio[horizon]),
        **_quartiles("distance_at_end", last),
        **_quartiles("factor", factors(ratio)),
        "converged": float((last < CONVERGED).double().mean()),
        "escaped": float((last > ESCAPED).double().mean()),
    }


def factors(ratio: Tensor) -> Tensor:
    """The mean factor a step of each game.

    Args:
        ratio: Distances, ``(steps + 1, G)``.

    Returns:
        (d_k / d_0)^(1/k), with k the last step before digits run out (1e-12) or the game has
        escaped, ``(G,)``.
    """
    within = ((ratio > 1e-12) & (ratio < ESCAPED)).long().cummin(0).values
    k = (within.sum(0) - 1).clamp(min=1)
    return ratio.gather(0, k.unsqueeze(0)).squeeze(0).clamp(min=1e-16) ** (1 / k)


def measure(
    followers: Mapping[int, ScaledGRU],
    rules: Mapping[int, GradientDifference],
    *,
    step: float,
    horizon: int,
    count: int,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Plays every setting by every method, for ten horizons.

    Args:
        followers: The learned ones, by seed.
        rules: What was read off each, by seed.
        step: η of the training.
        horizon: Of the training.
        count: Games of each setting.

    Yields:
        A record and the distances it is made from, ``(10 horizon + 1, G)``; what has seeds once
        for each of them and, without a seed, for all games of all seeds.
    """
    half = {0: GradientDifference(step, 1.0, 1.0)}
    # Of 15 pairs without γ the best in these very Forsaken games: what learning has to beat.
    by_hand = {0: GradientDifference(step, 0.5, 10.0)}
    learners: list[tuple[str, Mapping[int, Rule], Callable[[Rule], Iterative]]] = [
        ("one-sided optimistic", half, AtOnce),
        ("α = 1/2, β = 10", by_hand, AtOnce),
        ("learned", followers, AtOnce),
        ("rule read off", rules, AtOnce),
        ("learned, leader sees", followers, partial(Iterative, steps=1, warm_start=True)),
    ]
    for number, (setting, chosen) in enumerate(SETTINGS.items()):
        start = chosen.sample(count, random_numbers(10_000 + number))
        lr = (chosen.lr[0] * step, chosen.lr[1] * step)

        def ratios(played: Callable[..., Tensor], start: Start = start, lr: Any = lr) -> Tensor:
            return distances(start, played(start, lr, 10 * horizon))

        for name in SCHEDULES:
            ratio = ratios(by_schedule(name))
            yield _record(setting, name, None, ratio, horizon), ratio
        for name, updates, solver in learners:
            of_seeds = {seed: ratios(by_update(one, solver)) for seed, one in updates.items()}
            for seed, ratio in of_seeds.items():
                if len(of_seeds) > 1:
                    yield _record(setting, name, seed, ratio, horizon), ratio
            ratio = torch.cat(list(of_seeds.values()), 1)
            yield _record(setting, name, None, ratio, horizon), ratio


def _record(
    setting: str, method: str, seed: int | None, ratio: Tensor, horizon: int
) -> dict[str, Any]:
    about = {"record": "play", "setting": setting, "method": method, "seed": seed}
    return {**about, "games": ratio.shape[1], **summary(ratio, horizon)}


def _quartiles(name: str, values: Tensor) -> dict[str, float]:
    low, middle, high = values.quantile(values.new_tensor([0.25, 0.5, 0.75])).tolist()
    return {name: middle, f"{name}_q25": low, f"{name}_q75": high}
