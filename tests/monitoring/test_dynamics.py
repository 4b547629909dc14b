"""The naming of iterates, on hundreds of made-up records.

Each is turned into 2 to 50 dimensions around a random centre, at a random size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bilevel.monitoring.dynamics import MIN_ROWS, Verdict, classify

RUNS = 100


def embedded(rng: np.random.Generator, x: np.ndarray, noise: float) -> tuple[np.ndarray, float]:
    """``x`` with white noise of that size (root mean square over all dimensions), somewhere."""
    dimension = int(rng.integers(max(2, x.shape[1]), 51))
    axes, _ = np.linalg.qr(rng.normal(size=(dimension, x.shape[1])))
    size = 10 ** rng.uniform(-3, 3)
    y = x @ axes.T + noise * rng.normal(size=(len(x), dimension)) / math.sqrt(dimension)
    return size * y + 10 ** rng.uniform(-3, 3) * rng.normal(size=dimension), size


def turning(rng: np.random.Generator, low: float, high: float) -> tuple[np.ndarray, float, float]:
    """3.5 to 40 turns of at least 6 rows; the radius changes by a factor from ``low`` to ``high``.

    Ellipses, and a second harmonic in a third of them. Also the period and the growth a row.
    """
    rows = int(rng.integers(MIN_ROWS, 513))
    period = rows / rng.uniform(3.5, min(40, rows / 6))
    growth = rng.uniform(math.log(low), math.log(high)) / rows
    phase = 2 * math.pi * np.arange(rows) / period + rng.uniform(0, 7)
    x = np.stack([np.cos(phase), rng.uniform(0.3, 1) * np.sin(phase)], axis=1)
    if rng.random() < 1 / 3:
        x = np.concatenate([x, 0.3 * np.stack([np.cos(2 * phase), np.sin(2 * phase)], 1)], axis=1)
    return x * np.exp(growth * np.arange(rows))[:, None], period, growth


def white(rng: np.random.Generator, noisy: bool) -> float:
    return rng.uniform(0.02, 0.5) if noisy else 0.0


def cycling(rng: np.random.Generator, noisy: bool) -> np.ndarray:
    """The radius changes by −3 % to 10 %; noise up to half of the radius."""
    x, _, _ = turning(rng, 0.97, 1.1)
    return embedded(rng, x, white(rng, noisy) * rms(x))[0]


def diverging(rng: np.random.Generator, noisy: bool) -> np.ndarray:
    """A spiral that grows 2- to 100-fold, or an exponential of 10- to 1,000-fold without turning.

    Noise is up to half of a spiral's first radius, and up to 3 % of an exponential's last distance.
    """
    if rng.random() < 0.5:
        x, _, growth = turning(rng, 2, 100)
        first = rms(x * np.exp(-growth * np.arange(len(x)))[:, None])
        return embedded(rng, x, white(rng, noisy) * first)[0]
    rows = int(rng.integers(MIN_ROWS, 513))
    growth = np.exp(np.linspace(0, rng.uniform(math.log(10), math.log(1000)), rows))
    x = growth[:, None] * rng.normal(size=int(rng.integers(1, 5)))
    return embedded(rng, x, rng.uniform(0, 0.03) * float(np.linalg.norm(x[-1])) * noisy)[0]


def converging(rng: np.random.Generator, noisy: bool) -> np.ndarray:
    """Spirals in to 2/3 or less; approaches; drifts; walks; balls of noise, also with momentum."""
    kind, t = rng.integers(7), np.arange(int(rng.integers(MIN_ROWS, 513)))[:, None]
    d = int(rng.integers(1, 11))
    shocks, directions = rng.normal(size=(len(t), d)), rng.normal(size=d)
    if kind == 0:
        x, _, _ = turning(rng, 0.01, 1 / 1.5)
    elif kind == 1:
        x = directions * np.exp(-t * 10 ** rng.uniform(-3, 0, size=d))
    elif kind == 2:
        x = directions * (1 + t / 10 ** rng.uniform(0, 2)) ** -rng.uniform(0.1, 2)
    elif kind == 3:
        x = directions * t / len(t) + 0.02 * shocks
    elif kind == 4:
        x = np.cumsum(shocks, axis=0)
    elif kind == 5:
        x = directions * np.exp(-rng.uniform(3, 40) * t / len(t)) + 0.02 * shocks
    else:
        x = heavy_ball(rng, shocks)
    return embedded(rng, x, white(rng, noisy) * rms(x))[0]


def heavy_ball(rng: np.random.Generator, shocks: np.ndarray) -> np.ndarray:
    """Noisy descent of a quadratic, stationary; without momentum, and with 0.8 and 0.9."""
    momentum = rng.choice([0, 0.8, 0.9])
    curvature = 10 ** rng.uniform(-3, 0, size=shocks.shape[1])
    x = velocity = np.zeros(shocks.shape[1])
    path = []
    for shock in np.concatenate([rng.permutation(shocks), shocks]):
        velocity = momentum * velocity - curvature * x + shock
        x = x + velocity
        path.append(x)
    return np.array(path[len(shocks) :])


def rms(x: np.ndarray) -> float:
    return math.sqrt(x.var(0).sum())


@pytest.mark.parametrize("noisy", [False, True], ids=["clean", "noisy"])
@pytest.mark.parametrize("make", [converging, cycling, diverging])
def test_records_of_every_kind_are_named(
    make: Callable[[np.random.Generator, bool], np.ndarray], noisy: bool
) -> None:
    rng = np.random.default_rng(0)
    kinds = [classify(make(rng, noisy)).kind for _ in range(RUNS)]
    assert kinds.count(make.__name__) >= 0.98 * RUNS  # type: ignore[arg-type]


def test_a_random_walk_is_no_cycle_though_its_components_are_cosines() -> None:
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(size=(256, 2)), axis=0) for _ in range(RUNS)]
    assert sum(classify(walk).kind != "converging" for walk in walks) <= 2


def test_neither_noise_in_one_dimension_nor_a_warm_up_accelerates() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2 * RUNS, 256, 1))
    for rows in (*noise, *np.cumsum(noise, axis=1)):
        assert classify(rows).kind != "diverging"
    warm_up = np.linspace(0, 1, 256)[:, None] ** 2 * rng.normal(size=4)
    assert classify(warm_up).kind == "converging"


def test_noise_that_explodes_diverges_though_it_has_no_direction() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(256, 5)) * np.geomspace(1, 100, 256)[:, None]
    assert str(classify(rows)).startswith("diverges: the steps grow exponentially")


def test_a_slow_cycle_is_seen_in_noise_twice_its_size() -> None:
    rng = np.random.default_rng(0)
    phase = 2 * math.pi * np.arange(500) / 70
    rows, size = embedded(rng, np.stack([np.cos(phase), np.sin(phase)], axis=1), noise=2)
    verdict = classify(rows)
    assert verdict.kind == "cycling"
    assert verdict.period == pytest.approx(70, rel=0.02)
    assert verdict.radius == pytest.approx(size, rel=0.2)


def test_a_cycle_is_seen_around_a_centre_that_drifts() -> None:
    phase, time = 2 * math.pi * np.arange(400) / 50, np.linspace(0, 1, 400)
    drift = np.stack([20 * time**2, 10 * time], axis=1)
    verdict = classify(np.stack([np.cos(phase), np.sin(phase)], axis=1) + drift)
    assert verdict.kind == "cycling"
    assert (verdict.period, verdict.radius) == pytest.approx((50, 1), rel=1e-6)


def test_period_radius_and_trend_of_clean_cycles() -> None:
    rng = np.random.default_rng(0)
    for _ in range(RUNS):
        x, period, growth = turning(rng, 0.97, 1.1)
        rows, size = embedded(rng, x, noise=0.0)
        verdict = classify(rows, stride=3)
        flat = x * np.exp(growth * (len(x) - np.arange(len(x))))[:, None]  # as large as the last
        whole = round(len(x) // period * period)
        radius = size * math.sqrt((flat[-whole:] ** 2).sum(1).mean())
        assert verdict.period == pytest.approx(3 * period, rel=1e-4)
        assert verdict.radius == pytest.approx(radius, rel=2e-3)
        assert verdict.trend == pytest.approx(math.exp(growth * period), abs=2e-4)


def test_a_spiral_is_measured_however_fast_it_grows() -> None:
    t = np.arange(300)
    x = 1.2 ** t[:, None] * np.stack([np.cos(t / 2), np.sin(t / 2)], axis=1) + 1
    verdict = classify(x)
    assert verdict.kind == "diverging"
    assert verdict.period == pytest.approx(4 * math.pi, rel=1e-3)
    assert verdict.trend == pytest.approx(1.2 ** (4 * math.pi), rel=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_what_is_not_finite_has_diverged(bad: float) -> None:
    rows = np.zeros((MIN_ROWS, 2))
    rows[-1, 0] = bad
    assert classify(rows) == Verdict("diverging", radius=math.inf)


def test_too_few_rows_decide_nothing() -> None:
    verdict = classify(np.random.default_rng(0).normal(size=(MIN_ROWS - 1, 3)), stride=2)
    assert verdict.kind == "undecided"
    assert f"about {2 * MIN_ROWS} observations" in str(verdict)


def test_less_than_three_turns_decide_nothing() -> None:
    t = np.linspace(0, 2 * 2 * math.pi, 200)
    circle = np.stack([np.cos(t), np.sin(t)], axis=1)
    verdict = classify(circle)
    assert verdict.kind == "undecided"
    assert verdict.needed == pytest.approx(300, rel=0.1)
    assert classify(circle, stride=4).needed == 4 * verdict.needed


def test_a_spiral_that_comes_to_rest_within_three_turns_converges() -> None:
    t = np.linspace(0, 1.5 * 2 * math.pi, 200)
    spiral = np.exp(-t / 6)[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)
    assert classify(spiral) == Verdict("converging")


def test_a_third_of_a_turn_is_none() -> None:
    t = np.linspace(0, 2 * math.pi / 3, 200)
    assert classify(np.stack([np.cos(t), np.sin(t)], axis=1)) == Verdict("converging")


def test_rounding_is_no_motion() -> None:
    resting = torch.full((200, 3), 0.3)
    assert classify(resting) == Verdict("converging")
    resting[::2] += 2e-7  # a few units in the last place of float32, and a period of two rows
    assert classify(resting) == Verdict("converging")
    assert classify(resting.double()).kind == "cycling"


def test_a_cycle_is_seen_beside_large_numbers_that_rest() -> None:
    """The rounding of those that rest says nothing about those that move."""
    angle = 0.1 * torch.arange(500.0)
    circle = 0.01 * torch.stack([torch.cos(angle), torch.sin(angle), 0 * angle], dim=1)
    circle[:, 2] = 1e6
    verdict = classify(circle)
    assert verdict.kind == "cycling"
    assert verdict.radius == pytest.approx(0.01, rel=1e-3)


def test_a_cycle_as_small_as_rounding_is_none() -> None:
    """From end to end it is more than the rounding of float32, but not from its centre."""
    resting = torch.full((200, 3), 0.3)
    resting[::2] += 8e-7
    assert classify(resting) == Verdict("converging")
    assert classify(resting.double()).kind == "cycling"
