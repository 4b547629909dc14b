"""The paper's methods by name, and errors for unknown names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bilevel import BilevelError, Iterative
from bilevel.robustness import (
    EVALUATION_STEP,
    METHODS,
    TRAINING_STEP,
    Attacker,
    check_method,
    is_learned,
    make_solver,
)
from bilevel.updates import CNN, ConvRNN, NormalizedGradient, SignGradient, max_abs

EPS = 0.031
IMAGE, GRADIENT = ("context",), ("gradient",)
BOTH = IMAGE + GRADIENT
SMALL = Attacker("two-layer", width=4)


def solver(method: str, attacker: Attacker = SMALL, **options: Any) -> Iterative:
    made = make_solver(method, eps=EPS, channels=3, attacker=attacker, **options)
    assert isinstance(made, Iterative)
    return made


@pytest.mark.parametrize(
    ("method", "steps", "step"),
    [
        ("fgsm", 1, EPS),
        ("two-step-pgm", 2, EPS / 2),
        ("3-step-pgm", 3, EPS / 3),
        ("5-step-pgm", 5, TRAINING_STEP * EPS),
        ("pgm", 10, TRAINING_STEP * EPS),
    ],
)
def test_a_hand_designed_method(method: str, steps: int, step: float) -> None:
    """Its steps reach the boundary, however few they are."""
    made = solver(method)
    assert isinstance(made.update, SignGradient)
    assert (made.steps, made.update.step) == (steps, pytest.approx(step))
    assert not is_learned(method)
    assert not list(made.parameters())


@pytest.mark.parametrize(("method", "share"), [("fgsm", 0.5), ("two-step-pgm", 0.5), ("plain", 0)])
def test_steps_from_the_last_answer_are_no_longer_than_the_radius(
    method: str, share: float
) -> None:
    """Two of ε/2 reach the boundary too; one of ε would pass from corner to corner."""
    made = solver(method, warm_start=True)
    assert made.update.step * bool(made.steps) == pytest.approx(share * EPS)


def test_plain_training_takes_no_step() -> None:
    assert solver("plain").steps == 0
    assert not is_learned("plain")


@pytest.mark.parametrize("method", ["plain", "fgsm", "two-step-pgm", "pgm"])
def test_a_hand_designed_method_in_l2(method: str) -> None:
    """Steps of the same length as in L∞, along the gradient."""
    made = solver(method, norm="l2")
    assert isinstance(made.update, NormalizedGradient)
    assert (made.steps, made.update.step) == (solver(method).steps, solver(method).update.step)


@pytest.mark.parametrize("form", ["two-layer", "conv-rnn"])
def test_an_untrained_attacker_with_a_skip_climbs_most_steeply(form: str) -> None:
    """In L2 along the gradient where tanh is linear, in L∞ along its sign."""
    attacker, gradient = Attacker(form, width=4, gradient_skip=1e-3), torch.randn(2, 3, 8, 8)
    for norm, expected in (("linf", gradient.sign()), ("l2", max_abs(gradient))):
        update = solver("grad-l2l", attacker, norm=norm).update
        moved, _ = update(torch.zeros_like(gradient), gradient, torch.rand_like(gradient), None)
        torch.testing.assert_close(moved, 1e-3 * EPS * expected, rtol=1e-4, atol=1e-10)


def test_the_papers_step_of_pgm() -> None:
    assert solver("pgm").steps == 10
    assert solver("pgm").update.step == pytest.approx(0.007)
    assert pytest.approx(0.003) == EVALUATION_STEP * EPS


@pytest.mark.parametrize(
    ("method", "steps", "inputs"),
    [
        ("naive-l2l", 1, IMAGE),
        ("grad-l2l", 1, BOTH),
        ("two-step-l2l", 2, BOTH),
        ("grad-only-l2l", 1, GRADIENT),
        ("two-step-grad-only-l2l", 2, GRADIENT),
        ("2-step-l2l", 2, BOTH),
        ("5-step-l2l", 5, BOTH),
        ("12-step-grad-only-l2l", 12, GRADIENT),
    ],
)
@pytest.mark.parametrize("form", ["two-layer", "conv-rnn"])
def test_a_learned_method(method: str, steps: int, inputs: tuple[str, ...], form: str) -> None:
    made = solver(method, Attacker(form, width=4, normalize="batch", gradient_skip=0.5))
    assert type(made.update) is (ConvRNN if form == "conv-rnn" else CNN)
    assert (made.steps, made.update.inputs, made.update.normalize) == (steps, inputs, "batch")
    assert made.update.scale == EPS
    assert is_learned(method)
    # An attacker that sees no gradient has nothing that could skip it.
    assert (made.update.gradient_skip is None) == ("gradient" not in inputs)


def test_a_recurrent_attacker_has_the_given_width() -> None:
    assert solver("grad-l2l", Attacker("conv-rnn", width=5)).update.hidden == 5


def test_the_default_attacker_is_table_1() -> None:
    with torch.device("meta"):
        made = solver("grad-l2l", Attacker())
    assert sum(p.numel() for p in made.parameters()) == 1_747_851


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pgmm", "did you mean pgm"),
        ("two-step", "did you mean two-step-pgm"),
        ("0-step-l2l", "did you mean two-step-l2l"),
        ("-1-step-l2l", "did you mean two-step-l2l"),
        ("gradl2l", "did you mean grad-l2l"),
        ("3-step-naive-l2l", "did you mean naive-l2l"),
        ("", "choose from plain, fgsm"),
        ("trades", "choose from plain, fgsm, .*two-step-grad-only-l2l"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name: str, told: str) -> None:
    for refuse in (check_method, solver):
        with pytest.raises(BilevelError, match=f"there is no method '{name}': .*{told}"):
            refuse(name)


def test_every_listed_method_is_known() -> None:
    for method in METHODS:
        assert check_method(method) == method
        solver(method)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("1-step-pgm", "fgsm"),
        ("2-step-pgm", "two-step-pgm"),
        ("10-step-pgm", "pgm"),
        ("1-step-l2l", "grad-l2l"),
        ("2-step-l2l", "two-step-l2l"),
        ("1-step-grad-only-l2l", "grad-only-l2l"),
        ("2-step-grad-only-l2l", "two-step-grad-only-l2l"),
    ],
)
def test_a_method_has_one_name(name: str, method: str) -> None:
    assert check_method(name) == check_method(method) == method
    for options in ({}, {"norm": "l2"}, {"warm_start": True}):
        assert repr(solver(name, **options)) == repr(solver(method, **options))


@pytest.mark.parametrize("name", ["12-step-pgm", "3-step-l2l", "11-step-grad-only-l2l"])
def test_other_numbers_of_steps_keep_their_name(name: str) -> None:
    assert check_method(name) == name
