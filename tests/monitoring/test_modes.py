"""Rotations in several planes at once, with different frequencies and damping."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bilevel import Alternating, Monitor, games
from bilevel.monitoring.dynamics import classify
from bilevel.monitoring.modes import _subspace, find_largest_rotation

RUNS = 20


def alternating(field: np.ndarray) -> np.ndarray:
    """The matrix of a step: the leader's rows move first."""
    n = len(field) // 2
    first, second = np.eye(2 * n), np.eye(2 * n)
    first[:n] += field[:n]
    second[n:] += field[n:]
    return second @ first


def extragradient(field: np.ndarray) -> np.ndarray:
    return np.eye(len(field)) + field + field @ field


def lookahead(field: np.ndarray) -> np.ndarray:
    """Five steps, of which half are taken back."""
    whole = np.linalg.matrix_power(np.eye(len(field)) + field, 5)
    return (np.eye(len(field)) + whole) / 2


def bilinear(a: np.ndarray, step: float = 0.1) -> np.ndarray:
    """The displacement of a simultaneous step on min over x, max over y of xᵀ A y."""
    zero = np.zeros_like(a)
    return step * np.block([[zero, -a], [a.T, zero]])


def played(step: np.ndarray, steps: int) -> np.ndarray:
    points = [np.ones(len(step))]
    for _ in range(steps):
        points.append(step @ points[-1])
    return np.array(points)


@pytest.mark.parametrize("size", [2, 3, 5, 10])
@pytest.mark.parametrize("schedule", [alternating, extragradient, lookahead])
def test_bilinear_games_in_many_planes(
    schedule: Callable[[np.ndarray], np.ndarray], size: int
) -> None:
    rng = np.random.default_rng(size)
    verdicts = []
    for _ in range(RUNS):
        game = bilinear(rng.normal(size=(size, size)) / math.sqrt(size))
        verdicts.append(classify(played(schedule(game), 2000)[500::2], stride=2).kind)
    cycles = RUNS if schedule is alternating else 0
    assert verdicts.count("cycling") == cycles
    assert verdicts.count("diverging") == 0


def test_a_game_in_two_planes_is_watched() -> None:
    game = games.Bilinear(torch.diag(torch.tensor([1.0, 0.7], dtype=torch.float64)))
    play = games.begin(game, 1.0, 1.0, lr=0.1, schedule=Alternating())
    monitor = Monitor(play)
    for _ in range(1200):
        play.step(None)
        monitor.observe()
    verdict = monitor.verdict()
    assert verdict.kind == "cycling"
    assert verdict.trend == pytest.approx(1, abs=1e-4)
    assert min(abs(verdict.period - 20 * math.pi / s) for s in (1.0, 0.7)) < 0.1


@pytest.mark.parametrize(
    ("growth", "kind"), [((-2, -1), "converging"), ((-2, 0), "cycling"), ((0, 1), "diverging")]
)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_largest_rotation_is_measured(
    growth: tuple[float, float], kind: str, noise: float
) -> None:
    """Each has a growth of its own; they end with radii of a half and of 1."""
    rng, t = np.random.default_rng(0), np.arange(600)[:, None]
    x = noise * rng.normal(size=(600, 4))
    for i, (period, radius, log) in enumerate(zip((31, 50), (0.5, 1), growth, strict=True)):
        phase = 2 * math.pi * t / period
        circle = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
        x[:, 2 * i : 2 * i + 2] += radius * np.exp(log * (t / 600 - 1)) * circle
    verdict = classify(x)
    assert verdict.kind == kind
    assert verdict.period == pytest.approx(50, rel=0.01)
    assert verdict.radius == pytest.approx(1, rel=0.05)
    assert verdict.trend == pytest.approx(math.exp(growth[1] * 50 / 600), rel=0.01)


def lorenz(rng: np.random.Generator) -> np.ndarray:
    points = [rng.normal((0, 0, 20), 1)]
    for _ in range(6000):
        x, y, z = points[-1]
        slope = np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])
        points.append(points[-1] + 0.005 * slope)
    return np.array(points[1000::5])


def excited(rng: np.random.Generator) -> np.ndarray:
    """Oscillations that noise excites; each forgets its phase in 10 to 100 rows."""
    decay, omega = 1 - 10 ** rng.uniform(-2, -1, size=5), rng.uniform(0.05, 2, size=5)
    points = [np.zeros(5), np.zeros(5)]
    for shock in rng.normal(size=(1500, 5)):
        points.append(2 * decay * np.cos(omega) * points[-1] - decay**2 * points[-2] + shock)
    return np.array(points[502:])


def walk(rng: np.random.Generator) -> np.ndarray:
    return np.cumsum(rng.normal(size=(1000, 5)), axis=0)


def white(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(1000, 5))


@pytest.mark.parametrize("make", [white, walk, excited, lorenz])
def test_what_cannot_be_predicted_is_no_sum_of_rotations(
    make: Callable[[np.random.Generator], np.ndarray],
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(RUNS):
        x = make(rng)
        assert find_largest_rotation(x / np.abs(x).max()) is None


def test_a_ripple_on_a_slow_motion_is_no_cycle() -> None:
    t = np.arange(1000)[:, None]
    slow = np.concatenate([np.cos(t / 300), np.sin(t / 250), np.exp(-t / 400)], axis=1)
    ripple = np.cos(t * [1.3, 1.5, 1.7])
    assert find_largest_rotation(slow + 0.2 * ripple) is None  # 8.5 % of the motion's size
    assert find_largest_rotation(slow + 0.25 * ripple) is not None  # 10.5 %


def circles(radii: tuple[float, ...], omega: tuple[float, ...]) -> np.ndarray:
    phases = np.arange(1000)[:, None] * np.array(omega)
    return np.concatenate([radii * np.cos(phases), radii * np.sin(phases)], axis=1)


@pytest.mark.parametrize(("size", "rows"), [(5, 100), (1, 20)])
def test_beside_a_motion_that_grows(size: float, rows: float) -> None:
    grown = size * np.exp((np.arange(1000)[:, None] - 1000) / rows)
    x = np.concatenate([grown, circles((0.3, 0.2), (0.2, 0.31))], axis=1)
    rotation = find_largest_rotation(x)
    assert rotation.omega == pytest.approx(0.2)
    assert rotation.radius == pytest.approx(0.3)


@pytest.mark.parametrize("centre", [0, 100])
def test_the_centre_lies_anywhere(centre: float) -> None:
    x = centre + circles((0.3, 0.2), (0.2, 0.31))
    rotation = find_largest_rotation(x + np.random.default_rng(0).normal(0, 0.02, size=x.shape))
    assert rotation.omega == pytest.approx(0.2, rel=1e-4)
    assert rotation.radius == pytest.approx(0.3, rel=0.02)


def test_what_grows_without_turning_is_no_rotation() -> None:
    rng, grown = np.random.default_rng(0), np.exp((np.arange(1000)[:, None] - 1000) / [100, 200])
    for _ in range(RUNS):
        assert find_largest_rotation(grown + rng.normal(0, 1e-3, size=(1000, 2))) is None


def test_one_of_many_has_to_exceed_what_all_do_not_predict() -> None:
    rng, x = np.random.default_rng(0), circles((1,) * 6, (0.11, 0.17, 0.23, 0.37, 0.53, 0.71))
    assert find_largest_rotation(x + 0.1 * rng.normal(size=x.shape)) is not None
    for _ in range(5):
        assert find_largest_rotation(x + 0.2 * rng.normal(size=x.shape)) is None


@pytest.mark.parametrize("rows", [8, 9])
def test_the_principal_directions_of_all_windows(rows: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 2))
    columns = (x - x.mean(0)).T
    windows = np.concatenate([np.lib.stride_tricks.sliding_window_view(c, 4) for c in columns])
    found = _subspace(x)
    sizes = ((windows @ found) ** 2).sum(0)
    np.testing.assert_allclose(sizes, np.linalg.svd(windows)[1] ** 2)
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-12)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.2, RUNS, RUNS), (0.5, 0, RUNS // 2)])
def test_noise_hides_several_rotations_sooner_than_one(noise: float, least: int, most: int) -> None:
    rng, t = np.random.default_rng(0), np.arange(1000)[:, None]
    seen = 0
    for _ in range(RUNS):
        omega = rng.uniform(0.03, 1, size=3)
        x = np.concatenate([np.cos(omega * t), np.sin(omega * t)], axis=1)
        x = x @ rng.normal(size=(6, 10))
        x += noise * x.std() * rng.normal(size=x.shape)
        seen += classify(x).kind == "cycling"
    assert least <= seen <= most


def test_twenty_planes_need_a_longer_record() -> None:
    rng = np.random.default_rng(0)
    step = alternating(bilinear(rng.normal(size=(20, 20)) / math.sqrt(20)))
    assert classify(played(step, 2000)[500::4], stride=4).kind == "converging"
    assert classify(played(step, 4000)[1000::4], stride=4).kind == "cycling"
