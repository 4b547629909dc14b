"""What is said of an evaluation in a line: its headline, its radius, figures not to be quoted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bilevel.robustness import Finding, Norm
from bilevel.robustness.evaluation.verdict import headline, judge, not_to_be_quoted
from tests.robustness.evaluation.evaluations import outcome, sound, with_curve


def test_probes_come_first() -> None:
    probed = [Finding("gradients exist", False, "none at 90.0% of images", "They are zero.")]
    findings = judge(sound(), probed)
    assert findings[0] is probed[0]
    assert len(findings) == 12


def test_the_headline() -> None:
    trusted = sound(findings=judge(sound(), []))
    figure = "58.0% of 1000 images withstand every attack at ε = 0.2 (clean 90.0%)"
    assert headline(trusted) == f"Trustworthy: {figure}."
    wrong = with_curve("iterations", 0.88, 0.65, 0.62, 0.6, 0.57)
    assert headline(replace(wrong, findings=judge(wrong, []))) == (
        f"Not trustworthy: {figure}, because 1 of 11 checks failed: PGM has converged (falls by "
        "3.0 points from 50 to 100 iterations)."
    )
    assert headline(sound()) == f"Not trustworthy: {figure}, because nothing has been checked."


@pytest.mark.parametrize(("norm", "where"), [("linf", ""), ("l2", " in L₂"), ("l1", " in L₁")])
def test_the_radius_is_told_with_its_norm(norm: Norm, where: str) -> None:
    assert sound(norm=norm).radius == f"ε = 0.2{where}"


def test_attacks_of_one_name_are_counted_one_after_the_other() -> None:
    spans = [(0, 100), (50, 150), (0, 150)]
    attacks = tuple(outcome("PGM", "iterative", span) for span in spans)
    evaluation = sound(outcomes=attacks)
    assert [evaluation.newly_broken(one) for one in attacks] == [100, 50, 0]
    assert [evaluation.so_far(one) for one in attacks] == [0.8, 0.75, 0.75]


def test_figures_that_must_not_be_quoted() -> None:
    """Those above the worst case by more than the tolerance; others had no figure of their own."""
    lines = not_to_be_quoted(sound())
    worst = "other attacks break more; quote the worst case, 58.0%."
    assert lines == (
        f"70.0% under FGSM: {worst}",
        f"80.0% under FGSM on pgm-1: {worst}",
    )
    assert not_to_be_quoted(sound(outcomes=())) == ()
