"""Faults planted into a sound classifier are named in the headline of its evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bilevel import Solver, fgsm, pgm
from bilevel.robustness import (
    EVALUATION_STEP,
    Battery,
    Evaluation,
    ImageSet,
    Linf,
    Outcome,
    Perturbation,
    RandomSampling,
    Splits,
    Square,
    accuracy,
    correct,
    sample,
)
from bilevel.robustness.attacks.attack import Kind
from bilevel.robustness.attacks.solver_attack import SolverAttack
from bilevel.robustness.evaluation.curves import accuracy_by_epsilon, accuracy_by_iterations
from bilevel.robustness.evaluation.probes import probe
from bilevel.robustness.evaluation.verdict import headline, judge
from bilevel.robustness.threats.losses import margin
from tests.robustness.evaluation.faults import FAULTS, Faulty, straight_through
from tests.robustness.evaluation.items import (
    BLACK_BOX,
    CROSS_ENTROPY,
    LARGER,
    LONGER,
    RADIUS,
    RANDOM,
    UNBOUNDED,
)


def attacked(
    name: str, kind: Kind, model: nn.Module, data: ImageSet, follower: Perturbation, solver: Solver
) -> Outcome:
    """One attack on everything that the classifier gets right."""
    right = correct(model, data)
    broken = right & ~correct(model, data, follower, solver)
    role = SolverAttack(name, follower, solver).role
    return Outcome(name, kind, right, broken, 1.0, role=role)


def spot_check(
    model: nn.Module, data: ImageSet, follower: Perturbation, others: tuple[Outcome, ...]
) -> Outcome:
    """Three times the steps of the others, on what they leave."""
    left = correct(model, data) & ~torch.stack([other.broken for other in others]).any(0)
    broken = left & ~correct(model, data, follower, pgm(EVALUATION_STEP * follower.eps, 60))
    return Outcome("PGM-60 margin", "iterative", left, broken, 1.0, role="spot check")


def evaluate(
    model: nn.Module, data: ImageSet, *, eps: float, trained_eps: float | None, seed: int = 0
) -> Evaluation:
    """A small evaluation with everything that the verdict reads."""
    torch.manual_seed(seed)
    data, steps = sample(data, 150, seed=seed), pgm(EVALUATION_STEP * eps, 20)
    on_margin = Linf(eps, start=eps, loss=margin)
    attacks: list[tuple[str, Kind, Perturbation, Solver]] = [
        ("FGSM", "one-step", Linf(eps), fgsm(eps)),
        ("PGM-20", "iterative", Linf(eps, start=1e-4), steps),
        # One start left what that of the spot check broke, for three of 24 networks and seeds.
        *[("PGM-20 margin", "iterative", on_margin, steps)] * 5,
        ("random 50", "black-box", on_margin, RandomSampling(50)),
        ("Square 50", "black-box", Linf(eps, loss=margin), Square(50)),
    ]
    few = sample(data, 100, seed=seed)
    curves = (accuracy_by_epsilon(model, few, eps), accuracy_by_iterations(model, few, eps))
    outcomes = tuple(
        attacked(name, kind, model, data, follower, solver)
        for name, kind, follower, solver in attacks
    )
    check = spot_check(model, data, on_margin, outcomes[:-2])
    outcomes, right = (*outcomes, check), correct(model, data)
    evaluation = Evaluation("digits", eps, trained_eps, right, outcomes, curves)
    return replace(evaluation, findings=judge(evaluation, probe(model, data)))


@pytest.mark.parametrize("seed", range(3))
def test_a_robust_classifier_is_trusted(
    seed: int, robust_model: nn.Module, digits: Splits, robust_eps: float
) -> None:
    found = evaluate(robust_model, digits.test, eps=robust_eps, trained_eps=robust_eps, seed=seed)
    assert [finding for finding in found.findings if not finding.ok] == []
    assert headline(found).startswith("Trustworthy: ")
    assert 0.4 < found.worst_case < 0.8


MASKED = {"gradients exist", UNBOUNDED, LARGER}


@pytest.mark.parametrize(
    ("fault", "items"),
    [
        ("huge logits", {*MASKED, CROSS_ENTROPY}),
        (
            "rounded logits",
            {*MASKED, "output is continuous", "gradients predict the loss", BLACK_BOX, RANDOM},
        ),
    ],
)
def test_a_planted_fault_is_named(
    fault: str, items: set[str], robust_model: nn.Module, digits: Splits, robust_eps: float
) -> None:
    model = Faulty(robust_model, FAULTS[fault])
    found = evaluate(model, digits.test, eps=robust_eps, trained_eps=robust_eps)
    failed = {finding.item for finding in found.findings if not finding.ok}
    # Whether the random starts of the margin attacks break rounded logits is chance.
    assert items <= failed <= items | {CROSS_ENTROPY, LONGER}
    assert headline(found).startswith("Not trustworthy: ")
    assert all(item in headline(found) for item in items)


@pytest.mark.parametrize("exact", [True, False], ids=["straight through", "left out"])
def test_a_layer_without_a_gradient_is_attacked_through_an_approximation(
    exact: bool, robust_model: nn.Module, digits: Splits, robust_eps: float
) -> None:
    """The verdict does not pass for it: nothing says how good the approximation is."""
    data, follower = sample(digits.test, 100), Linf(robust_eps)
    model = Faulty(robust_model, lambda model, x: model((x * 8).round() / 8))
    passing = Faulty(robust_model, lambda model, x: model(straight_through(x, 8)))
    steps, approximation = pgm(0.1 * robust_eps, 20), passing if exact else robust_model
    attacks = [
        SolverAttack("PGM", follower, steps),
        SolverAttack("BPDA", follower, steps, surrogate=approximation),
    ]
    _, (own, through) = Battery(attacks, eps=robust_eps).run(model, data)
    assert int(own.broken.sum()) == 0
    whole = accuracy(robust_model, data) - accuracy(robust_model, data, follower, steps)
    assert through.broken.float().mean().item() > 0.8 * whole
    told = next(finding for finding in probe(model, data) if "predict" in finding.item)
    assert not told.ok
    assert "upper bound: " in told.sentence
    assert told.sentence.endswith("SolverAttack(…, surrogate=approximation).")


def test_a_random_layer_is_named(
    robust_model: nn.Module, digits: Splits, robust_eps: float
) -> None:
    model = Faulty(robust_model, FAULTS["random layer"])
    found = evaluate(model, digits.test, eps=robust_eps, trained_eps=robust_eps)
    assert "output is deterministic (" in headline(found)


@pytest.mark.parametrize(("eps", "trained_eps"), [(0.05, 0.2), (0.005, None)])
def test_a_wrong_epsilon_is_named(
    eps: float, trained_eps: float | None, robust_model: nn.Module, digits: Splits
) -> None:
    """Smaller than in training, or so small that nothing breaks."""
    found = evaluate(robust_model, digits.test, eps=eps, trained_eps=trained_eps)
    assert [finding.item for finding in found.findings if not finding.ok] == [RADIUS]
    (figure,) = (finding.figure for finding in found.findings if finding.item == RADIUS)
    assert headline(found).endswith(f"{RADIUS} ({figure}).")
