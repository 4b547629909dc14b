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
    Attacker,
    Battery,
    Evaluation,
    Linf,
    Splits,
    headline,
    judge,
    make_game,
    make_solver,
    sample,
    small_cnn,
    standard_attacks,
)
from bilevel.robustness.evaluation.curves import accuracy_by_epsilon, accuracy_by_iterations
from bilevel.robustness.evaluation.probes import probe
from tests.digits import train
from tests.robustness.evaluation.faults import Faulty
from tests.robustness.evaluation.items import BLACK_BOX

SEEN = 20


def sparse(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of an image of which only the brightest pixels are kept."""
    least = x.flatten(1).topk(SEEN, dim=1).values[:, -1].view(-1, 1, 1, 1)
    return model(torch.where(x >= least, x, 0))


def evaluate(model: nn.Module, digits: Splits, eps: float) -> Evaluation:
    """What ``robust_eval.py`` does by default, on a few images."""
    torch.manual_seed(0)
    images = sample(digits.test, 60)
    right, outcomes = Battery(standard_attacks(eps, classes=10), eps=eps).run(model, images)
    curves = accuracy_by_epsilon(model, images, eps), accuracy_by_iterations(model, images, eps)
    evaluation = Evaluation("digits", eps, None, right, outcomes, curves)
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


def test_sparse_inputs_are_found_out(
    robust_model: nn.Module, digits: Splits, robust_eps: float
) -> None:
    """Without the Square Attack nothing would be wrong with it."""
    found = evaluate(Faulty(robust_model, sparse), digits, robust_eps)
    assert [finding.item for finding in found.findings if not finding.ok] == [BLACK_BOX]
    assert headline(found).startswith("Not trustworthy: ")
    *others, square = found.outcomes
    too_high = replace(found, outcomes=tuple(others)).worst_case - found.worst_case
    assert square.name == "Square 300"
    assert too_high > 0.1


def test_a_robust_classifier_is_trusted(
    robust_model: nn.Module, digits: Splits, robust_eps: float
) -> None:
    found = evaluate(robust_model, digits, robust_eps)
    assert headline(found).startswith("Trustworthy: ")


def test_an_ordinary_classifier_is_trusted(ordinary_model: nn.Module, digits: Splits) -> None:
    found = evaluate(ordinary_model, digits, eps=0.1)
    assert headline(found).startswith("Trustworthy: ")
