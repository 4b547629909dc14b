"""The iterates of games and of an oscillator, whose dynamics are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bilevel import Alternating, Monitor, games
from bilevel.monitoring.dynamics import classify


def xy(x: float, y: float) -> tuple[float, float]:
    return y, x


def forsaken(x: float, y: float) -> tuple[float, float]:
    def slope(z: float) -> float:
        return z / 2 - 2 * z**3 + z**5

    return y - 0.45 + slope(x), x - slope(y)


Field = Callable[[float, float], tuple[float, float]]


def simultaneous(field: Field, x: float, y: float, step: float) -> tuple[float, float]:
    down, up = field(x, y)
    return x - step * down, y + step * up


def alternating(field: Field, x: float, y: float, step: float) -> tuple[float, float]:
    x -= step * field(x, y)[0]
    return x, y + step * field(x, y)[1]


def extragradient(field: Field, x: float, y: float, step: float) -> tuple[float, float]:
    down, up = field(*simultaneous(field, x, y, step))
    return x - step * down, y + step * up


Method = Callable[[Field, float, float, float], tuple[float, float]]


def path(
    method: Method, field: Field, start: tuple[float, float], step: float, steps: int
) -> np.ndarray:
    points = [start]
    for _ in range(steps):
        points.append(method(field, *points[-1], step))
    return np.array(points)


@pytest.mark.parametrize(
    ("method", "kind", "factor"),
    [
        (simultaneous, "diverging", math.sqrt(1 + 0.1**2)),
        (alternating, "cycling", 1.0),
        (extragradient, "converging", math.sqrt(1 - 0.1**2 + 0.1**4)),
    ],
)
def test_the_bilinear_game_has_its_known_factor(method: Method, kind: str, factor: float) -> None:
    verdict = classify(path(method, xy, (1.0, 0.0), step=0.1, steps=400))
    assert verdict.kind == kind
    assert verdict.period == pytest.approx(2 * math.pi / 0.1, rel=0.01)
    assert verdict.trend == pytest.approx(factor**verdict.period, rel=1e-3)


def test_at_the_papers_step_the_bilinear_game_cycles() -> None:
    # Every 500th iterate of 250,000: the step map is linear, so a power of it is a matrix.
    map_ = np.linalg.matrix_power(np.array([[1.0, -1e-4], [1e-4, 1.0]]), 500)
    rows = np.array([np.linalg.matrix_power(map_, k) @ [1.0, 0.0] for k in range(500)])
    verdict = classify(rows, stride=500)
    assert verdict.kind == "cycling"
    assert verdict.period == pytest.approx(62_832, rel=1e-3)
    assert verdict.trend == pytest.approx(math.exp(math.pi * 1e-4), rel=1e-5)


@pytest.mark.parametrize("method", [simultaneous, alternating, extragradient])
def test_forsakens_limit_cycle_and_its_solution(method: Method) -> None:
    around = classify(path(method, forsaken, (1.0, 1.0), step=0.05, steps=1000)[250:])
    inwards = classify(path(method, forsaken, (0.1, 0.4), step=0.05, steps=1000)[250:])
    assert (around.kind, inwards.kind) == ("cycling", "converging")


@pytest.mark.parametrize("steps", [1100, 1900, 3000, 4100])
def test_a_limit_cycle_does_not_shrink_whatever_the_record_cuts(steps: int) -> None:
    """Pieces of a record that hold hardly one period mistake its harmonics for a drift."""
    rows = path(extragradient, forsaken, (1.0, 1.0), step=0.05, steps=steps)[steps // 4 :: 4]
    verdict = classify(rows, stride=4)
    assert verdict.kind == "cycling"
    assert verdict.trend == pytest.approx(1.0, abs=1e-3)


def test_a_relaxation_oscillation_is_a_cycle() -> None:
    def van_der_pol(x: float, y: float) -> tuple[float, float]:
        return -y, 4 * (1 - x * x) * y - x

    rows = path(simultaneous, van_der_pol, (1.0, 0.0), step=0.02, steps=4000)[1000:]
    upwards = np.flatnonzero((rows[:-1, 0] < 0) & (rows[1:, 0] >= 0))
    verdict = classify(rows[::4], stride=4)
    assert verdict.kind == "cycling"
    assert verdict.period == pytest.approx(np.diff(upwards).mean(), rel=0.01)


def test_of_a_small_player_and_a_large_one_each_moves_by_its_own_size() -> None:
    """The small one is observed wholly, the other in part; they circle at a distance of 1."""
    game = games.Bilinear(torch.full((1, 400), 1 / 20).double())
    play = games.begin(game, 1.0, 0.0, lr=0.1, schedule=Alternating())
    monitor = Monitor(play)
    for _ in range(400):
        play.step(None)
        monitor.observe()
    assert monitor.verdict().radius == pytest.approx(1, rel=0.01)
