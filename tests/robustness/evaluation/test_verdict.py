"""The verdict: every item of the checklist on constructed results."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bilevel.robustness import (
    Curve,
    Evaluation,
    Outcome,
)
from bilevel.robustness.evaluation.tolerance import tolerance
from bilevel.robustness.evaluation.verdict import judge, not_to_be_quoted
from tests.robustness.evaluation.evaluations import (
    RIGHT,
    N,
    ascent,
    failed,
    images,
    longer,
    outcome,
    sampling,
    sound,
    unbroken,
    with_curve,
    with_outcome,
    without,
)
from tests.robustness.evaluation.items import (
    BLACK_BOX,
    COMPLETE,
    CONVERGED,
    CROSS_ENTROPY,
    ENOUGH,
    LARGER,
    LONGER,
    ONE_STEP,
    RADIUS,
    RANDOM,
    UNBOUNDED,
)


def test_nothing_is_wrong_with_a_sound_evaluation() -> None:
    findings = judge(sound(), [])
    assert [finding for finding in findings if not finding.ok] == []
    assert len({finding.item for finding in findings}) == len(findings) == 11
    assert all(finding.figure and finding.sentence.endswith(".") for finding in findings)


@pytest.mark.parametrize(
    ("evaluation", "items", "figure"),
    [
        (with_outcome("FGSM", (0, 330)), {ONE_STEP}, "33.0% broken, by many 30.5%"),
        (with_outcome("FGSM", (0, 324)), set(), ""),
        (with_outcome("FGSM", (290, 500)), set(), ""),  # others, and no more of them
        (with_outcome("FGSM on pgm-1", (0, 345)), {BLACK_BOX}, "3.0% of images"),
        (with_outcome("FGSM on pgm-1", (0, 335)), set(), ""),  # two points are within tolerance
        (with_outcome("noise", (315, 345)), {BLACK_BOX, RANDOM}, "3.0% of images"),
        (with_outcome("PGM-100", (0, 5)), set(), ""),  # the strongest counts, here PGM-20
        (with_curve("ε", 0.9, 0.8, 0.6, 0.1, 0.03), {UNBOUNDED}, "3.0% left at ε = 1"),
        (with_curve("ε", 0.9, 0.8, 0.6, 0.1, 0.001), set(), ""),  # one image of 1,000
        (
            with_curve("ε", 0.9, 0.8, 0.6, 0.59, 0.59),
            {UNBOUNDED, LARGER},
            "60.0% at ε = 0.2, 59.0% at 1; rises by 0.0 points",
        ),
        (
            with_curve("ε", 0.9, 0.5, 0.6, 0.1, 0.0),
            {LARGER},
            "60.0% at ε = 0.2, 0.0% at 1; rises by 10.0 points",
        ),
        (with_curve("ε", 0.9, 0.59, 0.6, 0.1, 0.0), set(), ""),
        (with_curve("ε", 0.9, 0.1, 0.01, 0.0, 0.0), set(), ""),  # nothing is left to fall
        (
            with_curve("iterations", 0.88, 0.65, 0.62, 0.6, 0.57),
            {CONVERGED},
            "falls by 3.0 points from 50 to 100 iterations",
        ),
        (with_curve("iterations", 0.88, 0.6, 0.5, 0.4, 0.39), set(), ""),
        (
            with_outcome("300 steps", (315, 320)),
            {LONGER},
            "5 of 100 broken, as much as 2.9 points",
        ),
        (with_outcome("300 steps", (315, 318)), set(), ""),
        (unbroken(with_curve("ε", 0.9, 0.9, 0.89, 0.889, 0.0)), {RADIUS}, "falls by 1.1 points"),
        (with_curve("ε", 0.9, 0.9, 0.89, 0.889, 0.0), set(), ""),  # other attacks break enough
        (sound(trained_eps=0.3), {RADIUS}, "ε = 0.2"),
        (sound(trained_eps=0.22), {RADIUS}, "ε = 0.2"),
        (sound(trained_eps=0.205), set(), ""),
        (sound(trained_eps=None), set(), ""),
        (sound(trained_eps=0.1), set(), ""),
        (sound(eps=0.003, trained_eps=None), {RADIUS}, "ε = 0.003"),
        (  # one grey level is the smallest change of an 8-bit image
            sound(
                eps=1 / 255,
                trained_eps=None,
                curves=(
                    Curve("ε", (0, 1 / 255, 2 / 255, 1), (0.9, 0.5, 0.3, 0), N),
                    sound().curves[1],
                ),
            ),
            set(),
            "",
        ),
        (
            sound(
                eps=0.003,
                trained_eps=0.003,
                curves=(
                    Curve("ε", (0, 0.003, 0.006, 1), (0.9, 0.5, 0.3, 0), N),
                    sound().curves[1],
                ),
            ),
            {RADIUS},
            "ε = 0.003",
        ),
    ],
)
def test_an_item(evaluation: Evaluation, items: set[str], figure: str) -> None:
    findings = failed(evaluation)
    assert set(findings) == items
    assert any(figure in finding.figure for finding in findings.values()) or not items


def test_a_threat_model_that_is_no_ball() -> None:
    """At 1 rad not every image is within reach, and 0.002 rad are not less than a grey level."""
    rotations = Curve("ε", (0, 0.001, 0.002, 0.5, 1), (0.9, 0.7, 0.6, 0.5, 0.4), N)
    tiny = sound(eps=0.002, trained_eps=None, curves=(rotations, sound().curves[1]))
    assert set(failed(tiny)) == {UNBOUNDED, RADIUS}
    turned = replace(tiny, threat="rotations up to 0.002 rad")
    assert failed(turned) == {}
    assert len(judge(turned, [])) == len(judge(tiny, [])) - 1
    assert set(failed(replace(turned, trained_eps=0.5))) == {RADIUS}
    flat = replace(rotations, accuracy=(0.9,) * 5)
    assert set(failed(replace(turned, curves=(flat, tiny.curves[1])))) == {LARGER}


def test_a_cross_entropy_that_finds_nothing() -> None:
    """A tenth of what others find is a weak attack; less of it is a masked gradient."""
    right, none = RIGHT, images()
    margin_attack = outcome("PGM-100 margin", "iterative", (0, 600))

    def evaluation(found: int) -> Evaluation:
        attacks = (
            outcome("FGSM", "one-step", (0, found)),
            ascent("PGM-100", (0, found)),
            replace(margin_attack, attacked=right & ~images((0, found))),
            longer(attacked=none),
            outcome("Square", "black-box", attacked=none),
            sampling(attacked=none),
        )
        return sound(outcomes=attacks)

    assert set(failed(evaluation(70))) == set()
    findings = failed(evaluation(50))
    assert set(findings) == {CROSS_ENTROPY}
    assert findings[CROSS_ENTROPY].figure == "5.0% broken, by all white-box attacks 60.0%"
    assert "under PGM-100" in " ".join(not_to_be_quoted(evaluation(200)))


def test_an_item_that_passes_says_nothing_that_the_figures_belie() -> None:
    """Where nothing breaks, no attack has a gradient to follow, and no ε is large enough."""
    flat = unbroken(with_curve("ε", 0.9, 0.9, 0.9, 0.9, 0.9))
    findings = {f.item: f for f in judge(flat, [])}
    assert findings[CROSS_ENTROPY].ok
    assert findings[RADIUS].ok
    assert "on other losses do not leave PGM-20 far behind" in findings[CROSS_ENTROPY].sentence
    assert "No larger ε breaks more" in findings[RADIUS].sentence


def test_a_black_box_attack_that_came_first_has_checked_nothing() -> None:
    """No iterative attack saw what it broke: nobody knows what they would have left."""
    attacked = images((400, 900))
    margin_attack = outcome("PGM-100 margin", "iterative", (400, 500), attacked=attacked)
    square = outcome("Square", "black-box", attacked=attacked)
    spot_check = longer(attacked=images((500, 600)))
    first = sound(outcomes=(sampling((0, 400)), square, margin_attack, spot_check))
    for item in (RANDOM, BLACK_BOX):
        assert failed(first)[item].figure == "not measured"
        assert "run pgm-100 before them" in failed(first)[item].sentence
    second = replace(first, outcomes=(*first.outcomes, ascent("PGM-20", (0, 300))))
    assert failed(second)[RANDOM].figure == "10.0% of images"
    third = replace(first, outcomes=(*first.outcomes, ascent("PGM-20", (0, 390))))
    assert RANDOM not in failed(third)


def test_names_decide_nothing() -> None:
    """PGD of another name counts as ascent; another attack called random is not random sampling."""
    renamed = {"PGM-20": "PGD-20", "PGM-100": "Madry", "FGSM on pgm-1": "random", "noise": "other"}
    named = [replace(o, name=renamed.get(o.name, o.name)) for o in sound().outcomes]
    assert failed(sound(outcomes=tuple(named))) == {}
    without_sampling = [o for o in named if o.name != "other"]
    assert set(failed(sound(outcomes=tuple(without_sampling)))) == {RANDOM}


@pytest.mark.parametrize(
    ("evaluation", "items", "remedy"),
    [
        (without("FGSM"), {ONE_STEP}, "fgsm"),
        (without("PGM-20", "PGM-100"), {ONE_STEP, CROSS_ENTROPY}, "pgm-100"),
        (without("300 steps"), {LONGER}, "add longer to the attacks"),
        (
            without("PGM-20", "PGM-100", "PGM-100 margin", "300 steps"),
            {ONE_STEP, CROSS_ENTROPY, BLACK_BOX, RANDOM, LONGER},
            "pgm-100 before",
        ),
        (  # a spot check of what nothing else has attacked
            without("PGM-20", "PGM-100", "PGM-100 margin"),
            {ONE_STEP, CROSS_ENTROPY, BLACK_BOX, RANDOM, LONGER},
            "pgm-100 before",
        ),
        (without("noise"), {RANDOM}, "random"),
        (without("FGSM on pgm-1"), {BLACK_BOX}, "add square or transfer"),
        (replace(without("FGSM on pgm-1"), norm="l2"), {BLACK_BOX}, "add square or transfer"),
        (replace(without("FGSM on pgm-1"), norm="l1"), {BLACK_BOX}, "add transfer to"),
        (without("noise", "FGSM on pgm-1"), {BLACK_BOX, RANDOM}, "transfer"),
        (sound(curves=sound().curves[:1]), {CONVERGED}, "curve against iterations"),
        (
            sound(curves=(sound().curves[0], Curve("iterations", (1,), (0.88,), N))),
            {CONVERGED},
            "curve against iterations",
        ),
        (sound(curves=sound().curves[1:]), {UNBOUNDED, LARGER, RADIUS}, "curve against ε"),
        (  # at 0.9 not every image is within reach
            sound(
                curves=(replace(sound().curves[0], at=(0, 0.1, 0.2, 0.4, 0.9)), sound().curves[1])
            ),
            {UNBOUNDED},
            "curve against ε",
        ),
        (
            sound(curves=(replace(sound().curves[0], problem="out of luck"), sound().curves[1])),
            {UNBOUNDED, LARGER, RADIUS},
            "Not checked: out of luck.",
        ),
        (
            sound(curves=(sound().curves[0], Curve("iterations", (), (), N, "out of luck"))),
            {CONVERGED},
            "Not checked: out of luck.",
        ),
        (
            sound(outcomes=()),
            {ONE_STEP, BLACK_BOX, RANDOM, LONGER, CROSS_ENTROPY, COMPLETE},
            "pgm-100",
        ),
    ],
)
def test_what_is_not_measured_is_not_trusted(
    evaluation: Evaluation, items: set[str], remedy: str
) -> None:
    findings = failed(evaluation)
    assert set(findings) == items
    unchecked = [finding for item, finding in findings.items() if item != COMPLETE]
    assert all(finding.figure == "not measured" for finding in unchecked)
    assert any(remedy in finding.sentence for finding in unchecked)


def test_an_attack_without_a_figure_is_named() -> None:
    problem = replace(outcome("CW", "iterative"), problem="the loss became NaN")
    findings = failed(sound(outcomes=(*sound().outcomes, problem)))
    assert set(findings) == {COMPLETE}
    assert findings[COMPLETE].figure == "7 of 8"
    assert "CW (the loss became NaN)" in findings[COMPLETE].sentence


@pytest.mark.parametrize(("position", "item"), [(0, ONE_STEP), (-1, RANDOM)])
def test_an_attack_without_a_figure_has_checked_nothing(position: int, item: str) -> None:
    outcomes = list(sound().outcomes)
    outcomes[position] = replace(outcomes[position], problem="out of memory")
    findings = failed(sound(outcomes=tuple(outcomes)))
    assert set(findings) == {COMPLETE, item}
    assert findings[item].figure == "not measured"


def test_the_tolerance() -> None:
    """Two points, or two standard errors of the paired difference where that is more."""
    assert tolerance(0.05, 10**6) == tolerance(0.0, 1) == 0.02
    draws = torch.randint(3, (4000, 100)) - 1.0  # two thirds discordant, no true difference
    assert tolerance(2 / 3, 100) == pytest.approx(2 * draws.mean(1).std().item(), rel=0.05)
    assert math.isclose(tolerance(0.04, 400), 0.02)


@pytest.mark.parametrize(("count", "enough"), [(16, False), (99, False), (100, True)])
def test_few_images_are_not_trusted(count: int, enough: bool) -> None:
    """Of next to no difference can be said that it is not chance, so that no other item fails."""
    evaluation = sound()
    few = tuple(
        replace(o, attacked=o.attacked[:count], broken=o.broken[:count])
        for o in evaluation.outcomes
    )
    findings = failed(replace(evaluation, right=RIGHT[:count], outcomes=few))
    assert (ENOUGH not in findings) is enough
    if not enough:
        assert findings[ENOUGH].figure == f"{count} images"
        assert "attack 100 or more" in findings[ENOUGH].sentence


def test_few_images_make_no_verdict() -> None:
    """The same shares on 50 images are chance."""
    rows = torch.arange(50)
    few = Evaluation("pgm", 0.2, 0.2, rows < 45)
    attacks = (("FGSM", "one-step", 18), ("PGM-20", "iterative", 16))
    made = tuple(Outcome(n, k, few.right, rows < broken, 1.0) for n, k, broken in attacks)  # type: ignore[arg-type]
    assert ONE_STEP not in failed(replace(few, outcomes=made))
    assert ONE_STEP in failed(with_outcome("FGSM", (0, 360)))
    curve = Curve("iterations", (1, 50, 100), (0.9, 0.6, 0.56), 50)
    assert CONVERGED not in failed(replace(few, curves=(curve,)))
