"""Classifies a sequence of iterates: it converges, cycles or diverges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bilevel.monitoring.modes import find_largest_rotation
from bilevel.monitoring.rotation import MIN_PERIODS, Array, Rotation, directions, find_rotation

MIN_ROWS = 128
"""With fewer observations the verdict is undecided."""

_GROWN, _SHRUNK = math.log(1.5), math.log(0.95)  # of the radius over a record; between: a cycle
_ROUNDING = 16  # units in the last place: a converged run jitters by a few
_HUGE = 1e150  # squares of more would overflow

Kind = Literal["undecided", "converging", "cycling", "diverging"]


@dataclass(frozen=True)
class Verdict:
    """What the iterates do. ``str()`` gives a sentence, for an alarm with the remedy.

    Args:
        kind: ``"converging"`` covers all that is no alarm: an approach, a spiral inwards, a drift,
            noise around a point, and many rotations that are not told apart.
        period: In steps; None without a rotation.
        radius: Root mean square distance from the centre at the end of the record, in units of the
            parameters; infinite if an iterate is; None without a rotation. Of several rotations
            it is that of the largest, as are the period and the trend.
        trend: The factor per period of the radius; None without a rotation.
        needed: If undecided, about how many observations are needed.
        damping: The game's schedule, if it is one that damps rotations already.

    Example:
        >>> print(Verdict("cycling", period=62.8, radius=1.0, trend=1.03))
        cycles with period 62.8 steps and radius 1, which grows by 3 % a period: smaller steps do
        not end it; use Extragradient or Optimistic, or regularise the players
    """

    kind: Kind
    period: float | None = None
    radius: float | None = None
    trend: float | None = None
    needed: int | None = None
    damping: str | None = None

    @property
    def alarm(self) -> bool:
        """Whether something should be done: the game cycles or diverges."""
        return self.kind in ("cycling", "diverging")

    def __str__(self) -> str:
        if self.period is not None:
            return self._describe_rotation(self.period)
        if self.kind == "undecided":
            return f"undecided: about {self.needed} observations are needed"
        if self.kind == "converging":
            return (
                "no alarm: the iterates approach a point, stay around it, drift, or turn in more "
                "ways at once than this record tells apart"
            )
        if self.radius is not None:
            return (
                "diverges: an iterate is NaN or infinite; go back to the last checkpoint and lower "
                "the learning rates"
            )
        return "diverges: the steps grow exponentially; lower the learning rates"

    def _describe_rotation(self, period: float) -> str:
        verb = {"converging": "spirals in", "cycling": "cycles"}.get(self.kind, "spirals out")
        percent = 100 * ((self.trend or 1.0) - 1)
        change = f"{'grows' if percent > 0 else 'shrinks'} by {abs(percent):.2g} % a period"
        if abs(percent) < 0.01:
            change = "neither grows nor shrinks"
        text = f"{verb} with period {period:.3g} steps and radius {self.radius:.3g}, which {change}"
        if not self.alarm:
            return text
        if period < 4:  # no rotation is as fast: the players overshoot and jump back
            return f"{text}: the step is too large; lower the learning rates"
        if self.damping is not None:  # for plain gradient steps that are small enough
            return (
                f"{text}, although {self.damping} damps rotations: lower the learning rates, take "
                "SGD without momentum, or regularise the players"
            )
        remedy = "use Extragradient or Optimistic, or regularise the players"
        if self.kind == "diverging":  # it may be damped at smaller steps, as xy is not
            return f"{text}: smaller steps end it only where the players' losses curve; {remedy}"
        return f"{text}: smaller steps do not end it; {remedy}"


def classify(rows: Array | Tensor, stride: int = 1) -> Verdict:
    """Classifies a record of iterates.

    A rotation needs at least three periods in the record and two rows a period; of several at once,
    the largest at the end counts. It is ``"diverging"`` if its radius grows over the record by more
    than half, ``"converging"`` if it shrinks by more than 5 % and by more than noise explains, and
    ``"cycling"`` otherwise. Without a rotation, the iterates diverge if their spread or their steps
    grow exponentially, at least five-fold over the record.

    Args:
        rows: ``(T, d)``, floating point: one iterate a row, evenly spaced.
        stride: The steps between two rows.

    Returns:
        The verdict, with the period and the observations needed in steps.

    Example:
        >>> t = torch.arange(300.0)
        >>> circle = torch.stack([torch.cos(0.1 * t), torch.sin(0.1 * t)], dim=1)
        >>> classify(circle).kind, classify(0.99 ** t[:, None] * circle).kind
        ('cycling', 'converging')
    """
    rows = torch.as_tensor(rows, device="cpu")
    x = rows.double().numpy()
    if len(x) < MIN_ROWS:
        return Verdict("undecided", needed=MIN_ROWS * stride)
    if not (np.abs(x) < _HUGE).all():
        return Verdict("diverging", radius=math.inf)
    rounding = _ROUNDING * torch.finfo(rows.dtype).eps * np.abs(x).max(0)
    moving = np.ptp(x, axis=0) > rounding
    x, rounding = x[:, moving], rounding[moving]
    if x.shape[1] == 0:
        return Verdict("converging")
    size = float(np.abs(x).max())
    x /= size
    rotation = find_rotation(x) or find_largest_rotation(x)
    if rotation is not None and rotation.radius * size > np.linalg.norm(rounding):
        return _classify_rotation(rotation, len(x), size, stride)
    if _accelerates(x):
        return Verdict("diverging")
    turns = _turns(x)
    if turns is not None:
        return Verdict("undecided", needed=math.ceil(MIN_PERIODS / turns * len(x)) * stride)
    return Verdict("converging")


def combine(verdicts: Sequence[Verdict], strides: Sequence[int]) -> Verdict:
    """Combines the verdicts on records of the same run at several strides.

    If several records have the same period, the longest one counts, since it shows best whether the
    radius changes. Of the alarms the finest counts, unless it is about a rotation that the next,
    longer record resolves but does not show: a damped rotation that noise excites lasts for a while
    and loses its phase.

    Args:
        verdicts: One for each record, the finest first.
        strides: The strides of the records.

    Returns:
        The finest alarm that holds; without one, the verdict on the longest record.

    Example:
        >>> fast = Verdict("cycling", period=3.0, radius=1.0, trend=1.0)
        >>> aliased = Verdict("cycling", period=12.0, radius=1.0, trend=1.0)
        >>> combine([fast, aliased], strides=[1, 4]).period
        3.0
    """
    for i, verdict in enumerate(verdicts):
        shorter, longer = verdicts[:i], verdicts[i + 1 :]
        if not verdict.alarm or any(_same_period(verdict, other) for other in longer):
            continue
        if not longer or verdict.period is None or verdict.period < 4 * strides[i + 1]:
            return verdict  # no longer record resolves it
        if longer[0].alarm or any(_same_period(verdict, other) for other in shorter):
            return verdict
    return verdicts[-1]


def _same_period(a: Verdict, b: Verdict) -> bool:
    if a.period is None or b.period is None:
        return False
    return math.isclose(a.period, b.period, rel_tol=0.05)


def _classify_rotation(rotation: Rotation, rows: int, size: float, stride: int) -> Verdict:
    change, error = rotation.growth * rows, rotation.growth_error * rows
    kind: Kind = "cycling"
    if change > _GROWN:
        kind = "diverging"
    elif change < min(_SHRUNK, -3 * error):
        kind = "converging"
    trend = math.exp(min(rotation.growth * rotation.period, 700.0))
    return Verdict(kind, rotation.period * stride, rotation.radius * size, trend)


def _accelerates(x: Array) -> bool:
    """Whether the spread within ninths of the record, or the steps between their means, explode."""
    blocks = np.array_split(x, 9)
    spread = np.array([math.sqrt(block.var(0).sum()) for block in blocks])
    steps = np.diff([block.mean(0) for block in blocks], axis=0)
    aligned = (directions(steps[-4:]) * directions(steps[-5:-1])).sum(1) > 0.5
    return _explodes(spread) or (bool(aligned.all()) and _explodes(np.linalg.norm(steps, axis=1)))


def _explodes(sizes: Array) -> bool:
    # Exponential growth has a constant factor, unlike that of a linear learning-rate warm-up.
    recent, before, first = sizes[-1], sizes[-3], sizes[-5]
    return bool(recent > 1.4 * before and before > 1.4 * first and recent > 5 * sizes[0])


def _turns(x: Array) -> float | None:
    """The turns of a smooth path of steady speed; None if it is not one, or has not come back."""
    steps = np.diff(x[:: len(x) // 32], axis=0)
    speeds, headings = np.linalg.norm(steps, axis=1), directions(steps)
    cosines = (headings[:-1] * headings[1:]).sum(1).clip(-1, 1)
    to_last, half = headings @ headings[-1], len(steps) // 2
    smooth = cosines.mean() > 0.8 and to_last[-4:].min() > 0
    came_back = (to_last < -0.5).mean() > 0.15
    steady = speeds[half:].mean() > 0.7 * speeds[:half].mean()
    if not (smooth and came_back and steady):
        return None
    return float(np.arccos(cosines).sum()) / (2 * math.pi)
