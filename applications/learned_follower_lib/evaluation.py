"""Play of unseen games by learned followers and by known methods, and its metrics."""

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
from learned_follower_lib.random_games import Start, bilinear, forsaken, make_generator
from learned_follower_lib.training import STRENGTH
from learned_follower_lib.updates import GradientDifference, LaggedIterative, ScaledGRU

Rule = ScaledGRU | GradientDifference

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "gda": Simultaneous,
    "alternating": Alternating,
    "optimistic": Optimistic,
    "extragradient": Extragradient,
}
"""The known methods, in which both players take gradient steps."""

CONVERGED, DIVERGED = 1e-3, 1e3
"""Thresholds on the final distance, relative to the initial one."""


@dataclass(frozen=True)
class Setting:
    """A distribution of unseen games.

    Args:
        sample: Draws games and starts.
        lr: Step sizes of leader and follower, relative to that of training.
    """

    sample: Callable[[int, torch.Generator], Start]
    lr: tuple[float, float] = (1.0, 1.0)


_BILINEAR = partial(bilinear, strength=STRENGTH)
_FORSAKEN = partial(forsaken, strength=STRENGTH)

SETTINGS = {
    "bilinear": Setting(_BILINEAR),
    "forsaken": Setting(_FORSAKEN),
    # Out of the training distribution.
    "bilinear, a in [1/8, 1/2]": Setting(partial(bilinear, strength=(0.125, 0.5))),
    "bilinear, a in [2, 4]": Setting(partial(bilinear, strength=(2.0, 4.0))),
    "bilinear, leader's step halved": Setting(_BILINEAR, (0.5, 1.0)),
    "bilinear, leader's step doubled": Setting(_BILINEAR, (2.0, 1.0)),
    "matrix 5×5": Setting(partial(_BILINEAR, size=5)),
    "forsaken, both steps halved": Setting(_FORSAKEN, (0.5, 0.5)),
}
"""By name; the first two are the training distribution."""

PAIRS = [(alpha, beta) for alpha in (0.1, 0.15, 0.2, 0.3, 0.5) for beta in (4.0, 6.0, 8.0, 10.0)]
"""(α, β) of rules without memory, tried in hindsight."""


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
        steps: Number of steps.
        schedule: See :func:`bilevel.games.begin`.
        solver: See :func:`bilevel.games.begin`.

    Returns:
        The trajectories of x and y, concatenated, ``(steps + 1, G, n + m)``.
    """
    game = games.begin(start.game, start.x, start.y, lr=lr, schedule=schedule, solver=solver)
    if solver is None:
        return games.trajectory(game, steps)
    path = [torch.cat([start.x, start.y], -1)]
    for _ in range(steps):
        game.step(None)
        y, _ = solver.kept or (start.y, None)
        path.append(torch.cat([*game.trained_parameters().values(), *leaves(y)], -1))
    return torch.stack(path)


def schedule_player(name: str) -> Callable[[Start, tuple[float, float], int], Tensor]:
    """A known method, as a function of start, step sizes and number of steps.

    Args:
        name: Of :data:`SCHEDULES`.
    """
    return lambda start, lr, steps: play(start, lr, steps, SCHEDULES[name]())


def update_player(
    update: Rule, solver: Callable[[Rule], Iterative] = LaggedIterative
) -> Callable[[Start, tuple[float, float], int], Tensor]:
    """A follower's step rule against gradient descent, as :func:`schedule_player`.

    Args:
        update: The rule; its ``step`` is set to the follower's step size.
        solver: Makes the solver of the rule.
    """

    def played(start: Start, lr: tuple[float, float], steps: int) -> Tensor:
        rule = deepcopy(update).requires_grad_(False)
        rule.step = lr[1]
        return play(start, lr, steps, solver=solver(rule))

    return played


def distances(start: Start, path: Tensor) -> Tensor:
    """Distances to the equilibrium, relative to the initial one.

    Args:
        start: The games.
        path: Trajectories, as returned by :func:`play`.

    Returns:
        ``(steps + 1, G)``.
    """
    size = start.x.shape[-1]
    distance = start.distance(path[..., :size], path[..., size:])
    return distance / distance[0]


def summary(ratio: Tensor, horizon: int) -> dict[str, float]:
    """Metrics over many games, at the training horizon and at the end.

    Args:
        ratio: Relative distances of all games, ``(steps + 1, G)``.
        horizon: Of training.

    Returns:
        Quartiles of the distance and of the factor per step, and the fractions of games that
        converged and that diverged.
    """
    last = ratio[-1]
    return {
        **_quartiles("distance_at_horizon", ratio[horizon]),
        **_quartiles("distance_at_end", last),
        **_quartiles("factor", factors(ratio)),
        "converged": float((last < CONVERGED).double().mean()),
        "escaped": float((last > DIVERGED).double().mean()),
    }


def factors(ratio: Tensor) -> Tensor:
    """The mean convergence factor per step of each game.

    Args:
        ratio: Relative distances, ``(steps + 1, G)``.

    Returns:
        (d_k / d_0)^(1/k), with k the last step before the distance falls below 1e-12, where
        rounding dominates, or the game diverges, ``(G,)``.
    """
    within = ((ratio > 1e-12) & (ratio < DIVERGED)).long().cummin(0).values
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
    """Evaluates every method in every setting, over ten horizons.

    Args:
        followers: The learned followers, by seed.
        rules: The linear rules fitted to them, by seed.
        step: η of training.
        horizon: Of training.
        count: Games per setting.

    Yields:
        A record and its relative distances, ``(10 horizon + 1, G)``. Methods with several seeds
        give a record for each seed, and one with seed None for the games of all seeds.
    """
    one_sided = {0: GradientDifference(step, 1.0, 1.0)}
    # What the learned rules amount to on slow trajectories, where moves hardly change.
    by_hand = {0: GradientDifference(step, 0.5, 10.0)}
    learners: list[tuple[str, Mapping[int, Rule], Callable[[Rule], Iterative]]] = [
        ("one-sided optimistic", one_sided, LaggedIterative),
        ("α = 1/2, β = 10", by_hand, LaggedIterative),
        ("learned", followers, LaggedIterative),
        ("rule read off", rules, LaggedIterative),
        ("learned, leader sees", followers, partial(Iterative, steps=1, warm_start=True)),
    ]
    for setting, chosen in SETTINGS.items():
        start = _unseen(setting, count)
        lr = (chosen.lr[0] * step, chosen.lr[1] * step)

        def ratios(played: Callable[..., Tensor], start: Start = start, lr: Any = lr) -> Tensor:
            return distances(start, played(start, lr, 10 * horizon))

        for name in SCHEDULES:
            ratio = ratios(schedule_player(name))
            yield _record(setting, name, None, ratio, horizon), ratio
        for name, updates, solver in learners:
            of_seeds = {seed: ratios(update_player(one, solver)) for seed, one in updates.items()}
            for seed, ratio in of_seeds.items():
                if len(of_seeds) > 1:
                    yield _record(setting, name, seed, ratio, horizon), ratio
            ratio = torch.cat(list(of_seeds.values()), 1)
            yield _record(setting, name, None, ratio, horizon), ratio


def measure_pairs(*, step: float, horizon: int, count: int) -> list[dict[str, Any]]:
    """Evaluates rules of two constants on the Forsaken games that :func:`measure` plays.

    Which of them is best there is known in hindsight only.

    Args:
        step: η of training.
        horizon: Of training.
        count: Games.

    Returns:
        A record of each of :data:`PAIRS`.
    """
    setting, records = "forsaken", []
    start = _unseen(setting, count)
    for alpha, beta in PAIRS:
        played = update_player(GradientDifference(step, alpha, beta))
        ratio = distances(start, played(start, (step, step), 10 * horizon))
        about = {"record": "pair", "setting": setting, "alpha": alpha, "beta": beta}
        records.append({**about, "games": count, **summary(ratio, horizon)})
    return records


def _unseen(setting: str, count: int) -> Start:
    """The games of a setting that every method plays."""
    return SETTINGS[setting].sample(count, make_generator(10_000 + list(SETTINGS).index(setting)))


def _record(
    setting: str, method: str, seed: int | None, ratio: Tensor, horizon: int
) -> dict[str, Any]:
    about = {"record": "play", "setting": setting, "method": method, "seed": seed}
    return {**about, "games": ratio.shape[1], **summary(ratio, horizon)}


def _quartiles(name: str, values: Tensor) -> dict[str, float]:
    low, middle, high = values.quantile(values.new_tensor([0.25, 0.5, 0.75])).tolist()
    return {name: middle, f"{name}_q25": low, f"{name}_q75": high}
