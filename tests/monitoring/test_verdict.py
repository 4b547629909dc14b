"""What a verdict says, and which of several is given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bilevel.monitoring.dynamics import Verdict, _classify_rotation, _explodes, combine
from bilevel.monitoring.rotation import Rotation


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            Verdict("cycling", period=63, radius=1.0, trend=1.03),
            "cycles with period 63 steps and radius 1, which grows by 3 % a period: smaller steps "
            "do not end it; use Extragradient or Optimistic, or regularise the players",
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
            "smaller steps end it only where the players' losses curve; use Extragradient or "
            "Optimistic, or regularise the players",
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
        (
            Verdict("converging"),
            "no alarm: the iterates approach a point, stay around it, drift, or turn in more ways "
            "at once than this record tells apart",
        ),
        (Verdict("diverging"), "diverges: the steps grow exponentially; lower the learning rates"),
    ],
)
def test_a_verdict_is_a_sentence(verdict: Verdict, sentence: str) -> None:
    assert str(verdict) == sentence


def cycle_of(period: float) -> Verdict:
    return Verdict("cycling", period, 1.0, 1.0)


STILL = Verdict("converging")


@pytest.mark.parametrize(
    ("verdicts", "chosen"),
    [
        ([STILL, cycle_of(50), STILL], 1),  # too slow for one record, too fast for another
        ([cycle_of(50), STILL, STILL], 2),  # the longer record resolves it and knows better
        ([cycle_of(50), cycle_of(51), STILL], 1),  # two see it; the longer one measures it
        ([cycle_of(100), cycle_of(101), STILL], 1),  # two against one
        ([cycle_of(50), Verdict("diverging"), STILL], 0),  # the longer record is alarmed too
        ([cycle_of(50), Verdict("converging", 50.0, 1.0, 0.99), STILL], 2),
        ([Verdict("diverging"), STILL, STILL], 0),
        ([STILL, STILL, Verdict("undecided", needed=9)], 2),
    ],
)
def test_records_are_weighed(verdicts: list[Verdict], chosen: int) -> None:
    assert combine(verdicts, strides=[1, 4, 16]) is verdicts[chosen]


@pytest.mark.parametrize(("factor", "kind"), [(1.45, "cycling"), (1.55, "diverging")])
def test_a_radius_that_grows_by_more_than_half_diverges(factor: float, kind: str) -> None:
    rotation = Rotation(0.1, math.log(factor) / 500, 0.0, radius=1.0, explained=1.0)
    assert _classify_rotation(rotation, rows=500, size=1.0, stride=1).kind == kind


@pytest.mark.parametrize(("factor", "explodes"), [(4.5, False), (5.5, True)])
def test_what_grows_less_than_five_fold_does_not_explode(factor: float, explodes: bool) -> None:
    assert _explodes(np.geomspace(1, factor, 9)) is explodes


@pytest.mark.parametrize(("error", "kind"), [(0.02, "converging"), (0.05, "cycling")])
def test_a_radius_shrinks_only_by_more_than_noise_explains(error: float, kind: str) -> None:
    """By a tenth over the record, which is three standard errors of 0.033."""
    rotation = Rotation(0.1, -0.1 / 500, error / 500, radius=1.0, explained=1.0)
    assert _classify_rotation(rotation, rows=500, size=1.0, stride=1).kind == kind
