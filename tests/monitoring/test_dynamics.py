"""The naming of iterates, on hundreds of made-up records and on games with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bilevel.monitoring.dynamics import MIN_ROWS, Verdict, classify, combine

RUNS = 100


# Made-up records. Each is turned into 2 to 50 dimensions around a random centre, at a random size.


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
        assert verdict.period == pytest.approx(3 * period, rel=0.02)
        assert verdict.radius == pytest.approx(radius, rel=0.02)
        assert verdict.trend == pytest.approx(math.exp(growth * period), abs=0.005)


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
    verdict = classify(np.stack([np.cos(t), np.sin(t)], axis=1))
    assert verdict.kind == "undecided"
    assert verdict.needed == pytest.approx(300, rel=0.1)


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


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            Verdict("cycling", period=63, radius=1.0, trend=1.03),
            "cycles with period 63 steps and radius 1, which grows by 3 % a period: a smaller step "
            "only slows it; use Extragradient or Optimistic, or regularise the players",
        ),
        (
            Verdict("cycling", period=2, radius=1.0, trend=1.0),
            "cycles with period 2 steps and radius 1, which neither grows nor shrinks: the step is "
            "too large; lower the learning rates",
        ),
        (
            Verdict("converging", period=63, radius=0.5, trend=0.9),
            "spirals in with period 63 steps and radius 0.5, which shrinks by 10 % a period",
        ),
        (
            Verdict("diverging", period=10, radius=1.0, trend=1.99),
            "spirals out with period 10 steps and radius 1, which grows by 99 % a period: "
            "a smaller step only slows it; use Extragradient or Optimistic, or regularise the "
            "players",
        ),
        (
            Verdict("cycling", period=63, radius=0.5, trend=1.0, damping="Optimistic"),
            "cycles with period 63 steps and radius 0.5, which neither grows nor shrinks, although "
            "Optimistic damps rotations: lower the learning rates, take SGD without momentum, or "
            "regularise the players",
        ),
        (
            Verdict("diverging", radius=math.inf),
            "diverges: an iterate is NaN or infinite; go back to the last checkpoint and lower the "
            "learning rates",
        ),
        (Verdict("diverging"), "diverges: the steps grow exponentially; lower the learning rates"),
    ],
)
def test_a_verdict_is_a_sentence(verdict: Verdict, sentence: str) -> None:
    assert str(verdict) == sentence


# Games.


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


# The records at several strides.


def cycle_of(period: float) -> Verdict:
    return Verdict("cycling", period, 1.0, 1.0)


STILL = Verdict("converging")


@pytest.mark.parametrize(
    ("verdicts", "chosen"),
    [
        ([STILL, cycle_of(50), STILL], 1),  # too slow for one record, too fast for another
        ([cycle_of(50), STILL, STILL], 2),  # the longer record resolves it and knows better
        ([cycle_of(50), cycle_of(51), STILL], 1),  # two see it; the longer one measures it
        ([cycle_of(50), Verdict("converging", 50.0, 1.0, 0.99), STILL], 2),
        ([Verdict("diverging"), STILL, STILL], 0),
        ([STILL, STILL, Verdict("undecided", needed=9)], 2),
    ],
)
def test_records_are_weighed(verdicts: list[Verdict], chosen: int) -> None:
    assert combine(verdicts, strides=[1, 4, 16]) is verdicts[chosen]
