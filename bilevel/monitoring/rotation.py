"""Detects a rotation in a record of iterates, by regression; ``modes`` detects several at once.

A rotation is one frequency ω with its harmonics, around a centre that may drift, with a radius that
changes by a factor e^λ a row:

    x_t = c₀ + c₁t + c₂t² + e^{λt} Σ_h (a_h cos hωt + b_h sin hωt) + noise

The peak of the spectrum initialises ω. Amplitudes fitted to pieces of the record refine ω and give
λ. A fit to the whole record then gives the share of the power below 2ω that the rotation explains.
It is close to 1 for a rotation, even under white noise of larger total power, most of which lies at
higher frequencies. It is small for

    noise alone;
    a random walk, whose principal components resemble cosines: most of its power lies below three
    periods a record;
    oscillations excited by noise in a damped system (heavy-ball momentum), which lose their phase.

Records are ``(T, d)``, scaled to about 1; times and periods are in rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_PERIODS = 3
"""The number of periods in the record from which a rotation counts."""

MIN_TURNS = 0.97 * MIN_PERIODS
"""The same, but for errors of the frequency."""

_EXPLAINED = 0.8  # share of the power up to twice the frequency
_TINY = 1e-300  # avoids 0 / 0


class Rotation(NamedTuple):
    """A rotation of frequency ω whose radius changes by e^λ a row."""

    omega: float
    growth: float  # λ
    growth_error: float  # its standard error
    radius: float  # at the last row, root mean square over a period
    explained: float  # share of the power up to twice the frequency

    @property
    def period(self) -> float:
        """The period, in rows."""
        return 2 * math.pi / self.omega


def find_rotation(x: Array) -> Rotation | None:
    """The rotation that dominates a record.

    Args:
        x: ``(T, d)``.

    Returns:
        The rotation; None if there is none of at least three periods.
    """
    # Directions of steps do not depend on growth; positions are less sensitive to noise.
    proposals = (_strongest(x), _strongest(directions(np.diff(x, axis=0))))
    best = max((fit_rotation(x, omega) for omega in proposals), key=lambda r: r.explained)
    turns = len(x) / best.period
    return best if explains(best.explained, 1.0) and turns >= MIN_TURNS else None


def explains(explained: float, total: float) -> bool:
    """Whether a share of the power is large enough for a rotation.

    Args:
        explained: The power explained.
        total: All power.

    Returns:
        Whether it is 80 % or more.
    """
    return explained >= _EXPLAINED * total


def directions(steps: Array) -> Array:
    """Normalises rows to length one; zero rows stay zero.

    Args:
        steps: ``(T, d)``.

    Returns:
        ``(T, d)``.
    """
    norms = np.linalg.norm(steps, axis=1, keepdims=True)
    return np.asarray(steps / np.where(norms > 0, norms, 1))


def drift(rows: int) -> Array:
    """A basis of the motions of a centre: constant, linear and quadratic in time.

    Args:
        rows: T.

    Returns:
        ``(T, 3)``.
    """
    return np.vander(np.linspace(-1, 1, rows), 3)


def _waves(omega: float, rows: int) -> Array:
    """Cosines, then sines, of ω and of up to two more harmonics that the rows resolve."""
    harmonics = np.arange(1, 1 + min(3, max(1, int(2 * math.pi / omega / 2.5))))
    phases = omega * np.arange(rows)[:, None] * harmonics
    return np.concatenate([np.cos(phases), np.sin(phases)], axis=1)


def without(basis: Array, x: Array) -> Array:
    """What the best fit of a basis leaves.

    Args:
        basis: ``(T, k)``.
        x: ``(T, d)``.

    Returns:
        ``(T, d)``.
    """
    q, _ = np.linalg.qr(basis)
    return x - q @ (q.T @ x)


def _strongest(x: Array) -> float:
    """The frequency of largest power, among those with three periods or more in the record."""
    rows = len(x)
    tapered = without(drift(rows), x) * np.hanning(rows)[:, None]
    power = (_spectrum(tapered, 4 * rows) ** 2).sum(1)
    lowest = 4 * MIN_PERIODS - 1
    return 2 * math.pi * (lowest + int(power[lowest:].argmax())) / (4 * rows)


def fit_rotation(x: Array, omega: float) -> Rotation:
    """Fits one rotation.

    Args:
        x: ``(T, d)``.
        omega: An estimate of its frequency, to within about half a turn over the record.

    Returns:
        The rotation, refined.
    """
    omega, growth, _ = _refine(x, omega, 0.0)
    return _fit(x, *_refine(x, omega, growth))


def _refine(x: Array, omega: float, growth: float) -> tuple[float, float, float]:
    """Refines ω by the phases, and λ by the moduli, of amplitudes fitted to pieces of the record.

    Each piece has a centre and a drift of its own.

    Args:
        x: The record.
        omega: An estimate of ω, to within about half a turn over the record.
        growth: An estimate of λ; 0 will do if the radius changes by less than its size in a turn.

    Returns:
        ω, λ and the standard error of λ.
    """
    rows = len(x)
    count = int(min(16, rows // 16, max(MIN_PERIODS, omega * rows / (4 * math.pi))))
    length = rows // count
    waves = np.exp(growth * np.arange(length))[:, None] * _waves(omega, length)
    basis = np.concatenate([waves, drift(length)[:, 1:]], axis=1)
    first_harmonic = np.linalg.pinv(basis)[[0, waves.shape[1] // 2]]
    pieces = x[rows - count * length :].reshape(count, length, -1)
    cos, sin = np.einsum("jl,kld->jkd", first_harmonic, pieces)
    index = np.arange(count)
    amplitudes = (cos - 1j * sin) * np.exp(-1j * omega * length * index)[:, None]
    sizes = np.maximum(np.linalg.norm(amplitudes, axis=1, keepdims=True), _TINY)
    turn = float(np.angle(np.vdot(amplitudes[:-1] / sizes[:-1], amplitudes[1:] / sizes[1:])))
    amplitudes *= np.exp(-1j * turn * index)[:, None]
    along = (amplitudes @ (amplitudes / sizes).mean(0).conj()).real  # noise averages out
    logs = np.log(np.maximum(along, 1e-3 * sizes[:, 0]))
    (slope, _), covariance = np.polyfit(index, logs, 1, cov=True)
    folded = math.pi - abs(math.pi - abs(omega + turn / length))  # aliased into (0, π]
    growth = float(np.clip(slope / length, -600 / rows, 600 / rows))
    return max(folded, math.pi / rows), growth, math.sqrt(covariance[0, 0]) / length


def _fit(x: Array, omega: float, growth: float, growth_error: float) -> Rotation:
    """Fits drift and waves to the whole record, with rows weighted by e^{-λt}.

    Args:
        x: The record.
        omega: ω.
        growth: λ.
        growth_error: Its standard error.

    Returns:
        The rotation, with the share that it explains.
    """
    rows = len(x)
    weights = np.exp(-growth * np.arange(rows) - max(0.0, -growth * rows))[:, None]
    centre, waves = weights * drift(rows), _waves(omega, rows)
    motion, basis = without(centre, weights * x), without(centre, waves)
    coefficients = np.linalg.lstsq(basis, motion, rcond=1e-9)[0]
    residual = motion - basis @ coefficients
    slow = 1 + math.ceil(2 * omega * rows / (2 * math.pi))
    period = 2 * math.pi / omega
    last = round(max(1, rows // period) * period)  # whole periods
    radius = math.sqrt(power((waves @ coefficients)[-last:]) / min(last, rows))
    return Rotation(
        omega,
        growth,
        growth_error,
        radius / float(weights[-1, 0]),
        explained=1 - power(_spectrum(residual)[:slow]) / power(_spectrum(motion)[:slow]),
    )


def _spectrum(x: Array, length: int | None = None) -> Array:
    return np.abs(np.fft.rfft(x, length, axis=0))


def power(x: Array) -> float:
    """The sum of squares.

    Args:
        x: Any shape.

    Returns:
        The sum of squares, plus 1e-300.
    """
    return float((x**2).sum()) + _TINY
