"""Our attacks against foolbox's: from equal seeds and settings the same adversarial images.

In double precision: in single precision a gradient near zero may change its sign with the order of
a machine's sums, and the pixel then moves by a whole step.
"""

from __future__ import annotations

import pytest
import torch

from bilevel import Iterative, Solver, ZeroSum, fgsm, pgm
from bilevel.robustness import (
    L2,
    RECIPES,
    Batch,
    Linf,
    Perturbation,
    attack,
    batches,
    build_model,
    load_images,
    make_game,
    shuffled_batches,
)
from bilevel.robustness.classifier import Classifier
from bilevel.updates import NormalizedGradient

foolbox = pytest.importorskip("foolbox")

EPS = 0.2


@pytest.fixture(scope="module")
def trained() -> tuple[Classifier, Batch]:
    """A classifier after two epochs of adversarial training on digits, and test images."""
    torch.manual_seed(0)
    data = load_images("digits", ".", seed=0)
    model = build_model("small-cnn", channels=1, classes=10)
    follower = Linf(EPS)
    game = make_game(ZeroSum(model, follower), follower, fgsm(EPS), RECIPES["digits"])
    for epoch in range(2):
        for batch in shuffled_batches(data.train, 64, seed=0, epoch=epoch):
            game.step(batch)
    test = next(batches(data.test, 120))
    return model.double().eval(), Batch(test.x.double(), test.y)


@pytest.mark.parametrize(
    ("theirs", "settings", "follower", "ours"),
    [
        ("FGSM", {}, Linf(EPS), fgsm(EPS)),
        ("LinfPGD", {"steps": 10, "abs_stepsize": 0.045}, Linf(EPS), pgm(0.045, 10)),
        ("LinfPGD", {"steps": 20, "rel_stepsize": 0.1}, Linf(EPS), pgm(0.1 * EPS, 20)),
        (
            "LinfPGD",
            {"steps": 10, "abs_stepsize": 0.045, "random_start": True},
            Linf(EPS, start=EPS),
            pgm(0.045, 10),
        ),
        (
            "L2PGD",
            {"steps": 10, "abs_stepsize": 0.25},
            L2(1.0),
            Iterative(NormalizedGradient(0.25), 10),
        ),
    ],
    ids=["FGSM", "PGM-10", "PGM-20", "PGM-10 from a random start", "PGM-10 in L2"],
)
def test_the_same_adversarial_images(
    trained: tuple[Classifier, Batch],
    theirs: str,
    settings: dict[str, float],
    follower: Perturbation,
    ours: Solver,
) -> None:
    model, batch = trained
    other = getattr(foolbox.attacks, theirs)(**{"random_start": False, **settings})
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    torch.manual_seed(1)
    expected = other.run(wrapped, batch.x, batch.y, epsilon=follower.eps)
    torch.manual_seed(1)
    adversarial = attack(model, follower, ours, batch).x
    assert (adversarial - expected).abs().max() < 1e-6
    # Not because neither moves: the attack does harm.
    right = [float((model(x).argmax(1) == batch.y).float().mean()) for x in (batch.x, adversarial)]
    assert right[1] < right[0] - 0.2
