"""The checklist on learned attackers, which a classifier may have been trained to withstand."""

from __future__ import annotations

import pytest

from bilevel.robustness import Evaluation, Outcome
from bilevel.robustness.attacks.attack import Kind
from tests.robustness.evaluation.evaluations import failed, outcome, sound
from tests.robustness.evaluation.items import (
    BLACK_BOX,
    LONGER,
    ONE_STEP,
    RANDOM,
)


def learned(kind: Kind, *broken: tuple[int, int]) -> Outcome:
    return outcome("own", kind, *broken, role="learned")


def evaluation(own: Outcome, *others: str) -> Evaluation:
    """The attacker's, then some of the outcomes of a sound evaluation."""
    kept = [one for one in sound().outcomes if one.name in others]
    return sound(outcomes=(own, *kept))


def unmeasured(evaluation: Evaluation) -> set[str]:
    return {k for k, finding in failed(evaluation).items() if finding.figure == "not measured"}


@pytest.mark.parametrize("kind", ["black-box", "one-step", "iterative"])
def test_beside_other_attacks_a_weak_one_changes_nothing(kind: Kind) -> None:
    weak = learned(kind, (0, 30))
    assert failed(sound(outcomes=(weak, *sound().outcomes))) == {}


@pytest.mark.parametrize(
    ("own", "others", "items"),
    [
        # Neither FGSM's strength nor its weakness beside it says anything of gradients.
        (learned("iterative", (0, 30)), ("FGSM",), {ONE_STEP}),
        (learned("iterative", (0, 400)), ("FGSM",), {ONE_STEP}),
        (learned("one-step", (0, 30)), ("PGM-20",), {ONE_STEP}),
        # That it breaks little shows no more than random points do.
        (learned("black-box", (0, 30)), ("FGSM", "PGM-20"), {BLACK_BOX}),
        (learned("black-box", (0, 30)), ("FGSM", "PGM-20", "noise"), {BLACK_BOX}),
        # What it leaves, others may break without a masked gradient, or a lack of steps.
        (learned("iterative", (0, 30)), ("FGSM on pgm-1",), {BLACK_BOX}),
        (learned("iterative", (0, 30)), ("noise",), {RANDOM}),
        (learned("iterative", (0, 30)), ("300 steps",), {LONGER}),
    ],
)
def test_it_does_not_stand_for_a_hand_designed_attack(
    own: Outcome, others: tuple[str, ...], items: set[str]
) -> None:
    assert items <= unmeasured(evaluation(own, *others))


def test_what_it_breaks_without_a_gradient_is_no_sign_of_masked_gradients() -> None:
    """It comes before most gradient-based attacks, which then do not see the image."""
    assert failed(sound(outcomes=(learned("black-box", (315, 345)), *sound().outcomes))) == {}


def test_what_it_breaks_by_a_gradient_is_not_what_gradients_miss() -> None:
    black_box = outcome("FGSM on pgm-1", "black-box", (315, 400))
    kept = [one for one in sound().outcomes if one.name != black_box.name]
    assert BLACK_BOX in failed(sound(outcomes=(*kept, black_box)))
    assert BLACK_BOX not in failed(
        sound(outcomes=(learned("one-step", (315, 400)), *kept, black_box))
    )
