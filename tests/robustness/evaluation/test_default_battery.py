"""The verdict of the default battery on sound classifiers, and on one whose gradients are masked.

The inputs of the masked one are sparse: no gradient tells of the pixels that it does not see, and
they are seen once they change. Random points change all of them, most in the wrong direction.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bilevel import ZeroSum
from bilevel.robustness import (
    RECIPES,
    STANDARD,
    Attacker,
    AttackSettings,
    Battery,
    Evaluation,
    Linf,
    Norm,
    Splits,
    headline,
    judge,
    make_attacks,
    make_game,
    make_solver,
    sample,
    small_cnn,
)
from bilevel.robustness.evaluation.curves import accuracy_by_epsilon, accuracy_by_iterations
from bilevel.robustness.evaluation.probes import probe
from tests.digits import train
from tests.robustness.evaluation.faults import Faulty
from tests.robustness.evaluation.items import BLACK_BOX, UNBOUNDED

SEEN = 20
NORMS = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.7)])


def sparse(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of an image of which only the brightest pixels are kept."""
    least = x.flatten(1).topk(SEEN, dim=1).values[:, -1].view(-1, 1, 1, 1)
    return model(torch.where(x >= least, x, 0))


def evaluate(
    model: nn.Module,
    digits: Splits,
    eps: float,
    norm: Norm = "linf",
    queries: int = 300,
    size: int = 100,
) -> Evaluation:
    """What ``robust_eval.py`` does by default, on a few images."""
    torch.manual_seed(0)
    images = sample(digits.test, size)
    attacks = make_attacks(STANDARD, AttackSettings(eps, 10, norm=norm, queries=queries))
    right, outcomes = Battery(attacks, eps=eps, norm=norm).run(model, images)
    curves = tuple(
        curve(model, images, eps, norm=norm)
        for curve in (accuracy_by_epsilon, accuracy_by_iterations)
    )
    evaluation = Evaluation("digits", eps, None, right, outcomes, curves, norm=norm)
    return replace(evaluation, findings=judge(evaluation, probe(model, images)))


@pytest.fixture(scope="module")
def ordinary_model(digits: Splits) -> nn.Module:
    """Trained on clean images for three epochs."""
    torch.manual_seed(0)
    model, follower = small_cnn(channels=1, classes=10, width=16), Linf(0.1)
    solver = make_solver("plain", eps=0.1, channels=1, attacker=Attacker())
    game = make_game(ZeroSum(model, follower), follower, solver, RECIPES["digits"])
    train(game, digits.train, RECIPES["digits"], epochs=3)
    return model.eval()


@pytest.mark.parametrize(
    ("norm", "eps", "queries", "hidden"), [("linf", 0.2, 300, 0.06), ("l2", 0.7, 1000, 0.04)]
)
def test_sparse_inputs_are_found_out(
    robust_model: nn.Module, digits: Splits, norm: Norm, eps: float, queries: int, hidden: float
) -> None:
    """By the Square Attack, which needs more queries in L2, and by the jump of what is shown."""
    found = evaluate(Faulty(robust_model, sparse), digits, eps, norm, queries, size=120)
    failed = [finding.item for finding in found.findings if not finding.ok]
    assert failed == ["output is continuous", BLACK_BOX]
    assert headline(found).startswith("Not trustworthy: ")
    *others, square = found.outcomes
    too_high = replace(found, outcomes=tuple(others)).worst_case - found.worst_case
    assert square.name == f"Square {queries}"
    assert too_high > hidden


@NORMS
def test_a_robust_classifier_is_trusted(
    robust_model: nn.Module, digits: Splits, norm: Norm, eps: float
) -> None:
    found = evaluate(robust_model, digits, eps, norm)
    assert headline(found).startswith("Trustworthy: ")
    (figure,) = (one.figure for one in found.findings if one.item == UNBOUNDED)
    assert figure.endswith(f"left at ε = {1 if norm == 'linf' else 8}")  # of 8×8 images


def test_an_ordinary_classifier_is_trusted(ordinary_model: nn.Module, digits: Splits) -> None:
    found = evaluate(ordinary_model, digits, eps=0.1)
    assert headline(found).startswith("Trustworthy: ")
