"""The worst case of the battery against that of AutoAttack, on the same network and images."""

from __future__ import annotations

import pytest
from torch import nn

from bilevel.robustness import AttackSettings, Battery, Norm, Splits, make_attacks, sample

COUNT = 60


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.7), ("l1", 4.0)])
def test_the_worst_case_is_autoattacks(
    robust_model: nn.Module, digits: Splits, norm: Norm, eps: float
) -> None:
    """Its standard version: APGD-CE, APGD-T, FAB-T and Square, with the authors' settings."""
    pytest.importorskip("pyautoattack")
    images = sample(digits.test, COUNT)
    settings = AttackSettings(eps, classes=10, norm=norm)
    ours = make_attacks(["pgm-20", "pgm-100-margin", "apgd-ce", "apgd-t"], settings)
    theirs = make_attacks(["autoattack"], settings)
    left = []
    for attacks in (ours, theirs):
        right, outcomes = Battery(attacks, eps=eps, norm=norm).run(robust_model, images)
        for outcome in outcomes:
            assert not outcome.problem
            right &= ~outcome.broken
        left.append(int(right.sum()))
    assert abs(left[0] - left[1]) <= 0.02 * COUNT
    assert left[0] < int(COUNT * 0.65)  # and it is not that nothing was attacked
