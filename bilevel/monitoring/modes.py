"""Detects rotations in several planes at once, whose frequencies and damping differ.

The motion is a sum of modes, each with a frequency and a growth of its own:

    x_t = c + Σ_k e^{λ_k t} (a_k cos ω_k t + b_k sin ω_k t) + noise

With enough modes such a sum fits any record, noise too, but only lasting rotations go on as it
says. So the modes of the first two thirds must predict the last third: random walks, oscillations
that lose their phase, and chaos do not pass. If they do, the largest rotation is measured alone,
after all other modes are subtracted.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bilevel.monitoring.rotation import (
    MIN_TURNS,
    Array,
    Rotation,
    drift,
    explains,
    fit_rotation,
    power,
    without,
)

_LARGE = 0.1  # of the motion's size: a schedule's own ripples on a slow motion are smaller
_FASTEST = 100.0  # exponents beyond would overflow when squared

Modes = NDArray[np.complex128]  # λ + iω


def find_largest_rotation(x: Array) -> Rotation | None:
    """The largest of the rotations that a record is the sum of.

    Args:
        x: ``(T, d)``.

    Returns:
        The one of largest power in the last third of the record; None if its modes do not predict
        that third, or none turns three times and has a tenth of the motion's size.
    """
    rows = len(x)
    cut = 2 * rows // 3
    past, motion = _subspace(x[:cut]), power(without(drift(rows - cut), x[cut:]))
    orders = [2**k for k in range(2, len(past).bit_length() - 1)]  # up to half of the windows
    missed, order = min((_missed(x, cut, _modes(past, order)), order) for order in orders)
    if not explains(motion - missed, motion):
        return None
    modes = _modes(_subspace(x), order)
    turning = np.flatnonzero(modes.imag * rows >= 2 * math.pi * MIN_TURNS)
    if not len(turning):
        return None
    waves, coefficients = _fit(x, modes, rows)
    parts = [waves[:, [k, k + len(modes)]] @ coefficients[[k, k + len(modes)]] for k in turning]
    largest = int(np.argmax([power(part[cut:]) for part in parts]))
    part = parts[largest]
    size = power(part[cut:])
    if not explains(size, size + missed) or size < _LARGE**2 * power(x - x.mean(0)):
        return None
    rotation = fit_rotation(x - waves @ coefficients + part, modes[turning[largest]].imag)
    return rotation if explains(rotation.explained, 1.0) else None


def _subspace(x: Array) -> Array:
    """Principal directions, the strongest first, of all windows of half the rows."""
    x = x - x.mean(0)
    rows, length = len(x), len(x) // 2
    sums = np.zeros((rows + 1, rows + 1))  # of the Gram matrix, along its diagonals
    for i, row in enumerate(x @ x.T):
        sums[i + 1, 1:] = sums[i, :-1] + row
    windows = rows - length + 1
    covariance = sums[windows:, windows:][:length, :length] - sums[:length, :length]
    return np.asarray(np.linalg.eigh(covariance)[1][:, ::-1])


def _modes(subspace: Array, order: int) -> Modes:
    """ESPRIT (Roy and Kailath, 1989): a shift by one row acts linearly on the windows."""
    basis = subspace[:, :order]
    factors = np.linalg.eigvals(np.linalg.lstsq(basis[:-1], basis[1:], rcond=None)[0])
    kept = (factors.imag >= 0) & (np.abs(factors) > 1e-3)
    return np.asarray(np.log(factors[kept].astype(np.complex128)))


def _fit(x: Array, modes: Modes, rows: int) -> tuple[Array, Array]:
    """Fits a centre and the modes to a record.

    Args:
        x: ``(T, d)``.
        modes: ``(K,)``.
        rows: The number of rows of the waves, at least T.

    Returns:
        The waves, ``(rows, 2K + 1)``, first all cosines, then all sines, and their coefficients.
    """
    times, last = np.arange(rows)[:, None], len(x) - 1
    exponents = modes * times - np.maximum(modes.real, 0) * last  # at most 1 within the record
    complex_waves = np.exp(np.minimum(exponents.real, _FASTEST) + 1j * exponents.imag)
    waves = np.concatenate([complex_waves.real, complex_waves.imag, np.ones((rows, 1))], axis=1)
    return waves, np.linalg.lstsq(waves[: len(x)], x, rcond=1e-10)[0]


def _missed(x: Array, cut: int, modes: Modes) -> float:
    """The power, without a drift, that modes fitted to the rows before ``cut`` do not predict."""
    waves, coefficients = _fit(x[:cut], modes, len(x))
    return power(without(drift(len(x) - cut), x[cut:] - waves[cut:] @ coefficients))
