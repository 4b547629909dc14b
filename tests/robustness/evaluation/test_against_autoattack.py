"""The worst case of the battery against that of AutoAttack, on the same network and images."""

from __future__ import annotations

import pytest
from torch import nn

from bilevel.robustness import AttackSettings, Battery, Splits, make_attacks, sample

COUNT = 100


def test_the_worst_case_is_autoattacks(
    robust_model: nn.Module, robust_eps: float, digits: Splits
) -> None:
    """Its standard version: APGD-CE, APGD-T, FAB-T and Square, with the authors' settings."""
    pytest.importorskip("pyautoattack")
    images = sample(digits.test, COUNT)
    settings = AttackSettings(robust_eps, classes=10)
    ours = make_attacks(["pgm-20", "pgm-100-margin", "apgd-ce", "apgd-t"], settings)
    theirs = make_attacks(["autoattack"], settings)
    left = []
    for attacks in (ours, theirs):
        right, outcomes = Battery(attacks, eps=robust_eps).run(robust_model, images)
        for outcome in outcomes:
            assert not outcome.problem
            right &= ~outcome.broken
        left.append(int(right.sum()))
    assert abs(left[0] - left[1]) <= 0.01 * COUNT
    assert left[0] < int(COUNT * 0.65)  # and it is not that nothing was attacked
