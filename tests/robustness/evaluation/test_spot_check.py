"""The spot check: a longer attack on a sample tells whether the others had steps enough."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bilevel import BilevelError, pgm
from bilevel.robustness import (
    APGD,
    STANDARD,
    AttackSettings,
    Battery,
    Evaluation,
    ImageSet,
    Linf,
    SolverAttack,
    Splits,
    judge,
    make_attacks,
    sample,
)
from bilevel.robustness.threats.losses import margin
from tests.robustness.evaluation.items import LONGER
from tests.robustness.evaluation.scripted import EPS, Scripted, Threshold
from tests.robustness.evaluation.test_verdict import failed, images, longer, outcome, sound


def only(name: str, classes: int, **settings: object) -> SolverAttack:
    (made,) = make_attacks([name], AttackSettings(0.3, classes, **settings))
    assert isinstance(made, SolverAttack)
    return made


@pytest.mark.parametrize(("classes", "tries"), [(10, 1), (3, 1), (2, 5)])
def test_the_spot_check_is_the_targeted_attack_with_three_times_the_steps(
    classes: int, tries: int
) -> None:
    long, short = (only(name, classes, restarts=5) for name in ("longer", "apgd-t"))
    assert isinstance(long.solver, APGD)
    assert isinstance(short.solver, APGD)
    assert long.solver.steps == 3 * short.solver.steps
    assert (long.follower.loss, long.follower.start) == (short.follower.loss, short.follower.start)
    assert (long.name, long.sample) == (f"{short.name} 300 steps", 100)
    assert (long.role, short.role, long.tries) == ("spot check", "", tries)
    assert long.passes == 903 * tries
    assert STANDARD.index("apgd-t") < STANDARD.index("longer") < STANDARD.index("square")


def test_a_spot_check_is_not_run_on_every_image() -> None:
    with pytest.raises(BilevelError, match="APGD-T 300 steps is run on a sample of 100"):
        only("longer", 10, alone=("longer",))


def test_a_spot_check_sees_some_of_what_is_left(images: ImageSet) -> None:
    """Drawn at random, by the seed alone."""

    def seen(seed: int) -> set[int]:
        check = Scripted("longer", set(), sample=5)
        attacks = [Scripted("first", set(range(0, 60, 2))), check, Scripted("last", set())]
        _, (first, drawn, last) = Battery(attacks, eps=EPS, seed=seed).run(Threshold(), images)
        left = first.attacked & ~first.broken
        assert int(drawn.attacked.sum()) == 5 < int(left.sum())
        assert not (drawn.attacked & ~left).any()
        assert torch.equal(last.attacked, left)
        assert (drawn.role, last.role) == ("spot check", "")
        return set(drawn.attacked.nonzero().flatten().tolist())

    draws = [seen(seed) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len({frozenset(draw) for draw in draws}) == 3


def test_a_spot_check_of_more_images_than_are_left_sees_them_all(images: ImageSet) -> None:
    attacks = [Scripted("first", {1, 2}), Scripted("longer", set(), sample=10**6)]
    _, (first, check) = Battery(attacks, eps=EPS).run(Threshold(), images)
    assert torch.equal(check.attacked, first.attacked & ~first.broken)


def test_a_spot_check_has_no_accuracy_of_its_own() -> None:
    with pytest.raises(BilevelError, match="sample of 5 images: it has no accuracy of its own"):
        Scripted("longer", set(), sample=5, alone=True)
    with pytest.raises(BilevelError, match="sample is 0"):
        Scripted("longer", set(), sample=0)


def test_a_spot_check_speaks_for_the_images_that_it_was_drawn_from() -> None:
    """Of few survivors a larger share may break than of many: it is the same share of all."""
    few = images((860, 900))
    margin_attack = outcome("margin", "iterative", (0, 860))

    def evaluation(broken: int) -> Evaluation:
        check = longer((860, 860 + broken), attacked=few)
        return sound(outcomes=(*sound().outcomes[:3], margin_attack, check, *sound().outcomes[5:]))

    assert LONGER not in failed(evaluation(19))
    assert failed(evaluation(21))[LONGER].figure == "21 of 40 broken, as much as 2.1 points"
    none = longer(attacked=images())
    nothing_left = sound(outcomes=(outcome("all", "iterative", (0, 900)), none))
    (found,) = (one for one in judge(nothing_left, []) if one.item == LONGER)
    assert (found.ok, found.figure) == (True, "no image is left")


def test_a_spot_check_is_of_what_others_left() -> None:
    """Before them, or alone, it has checked nothing; of several the strongest counts."""
    check = longer((0, 60), attacked=images((0, 100)))
    others = [one for one in sound().outcomes if one.role != "spot check"]
    assert LONGER not in failed(sound())
    for outcomes in ([check, *others], [check], [replace(check, problem="NaN"), *others]):
        found = failed(sound(outcomes=tuple(outcomes)))[LONGER]
        assert found.figure == "not measured"
    weak = longer(attacked=images((315, 415)))
    strong = longer((315, 365), attacked=images((315, 415)))
    for checks in ((weak, strong), (strong, weak)):
        found = failed(sound(outcomes=(*others, *checks)))[LONGER]
        assert found.figure.startswith("50 of 100 broken")


def test_attacks_of_too_few_steps_are_found_out(
    robust_model: nn.Module, digits: Splits, robust_eps: float
) -> None:
    data, threat = sample(digits.test, 100), Linf(robust_eps, loss=margin)

    def found(steps: int) -> bool:
        attacks = [
            SolverAttack("short", threat, pgm(0.05 * robust_eps, steps)),
            SolverAttack("longer", threat, pgm(0.05 * robust_eps, 60), sample=50),
        ]
        right, outcomes = Battery(attacks, eps=robust_eps).run(robust_model, data)
        findings = judge(Evaluation("digits", robust_eps, None, right, outcomes), [])
        return next(one.ok for one in findings if one.item == LONGER)

    assert found(60)
    assert not found(4)
