"""Our attacks against foolbox's and torchattacks': the same images, and the same accuracy.

The images in double precision: in single precision a gradient near zero may change its sign with
the order of a machine's sums, and the pixel then moves by a whole step. The accuracy in single
precision and from the start that the paper evaluates from, as it is reported.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import Iterative, Solver, fgsm, pgm
from bilevel.robustness import (
    EVALUATION_STEP,
    L2,
    Adversary,
    Batch,
    Classifier,
    Linf,
    Perturbation,
    accuracy,
    attack,
    batches,
    targeted_cross_entropy,
)
from bilevel.updates import Momentum, NormalizedGradient, SignGradient
from tests.digits import EPS, Players, trained

FIXED = {"random_start": False}


@pytest.fixture(scope="module")
def players() -> Players:
    return trained()


@pytest.fixture(scope="module")
def doubles() -> tuple[Classifier, Batch]:
    players = trained()
    batch = next(batches(players.test, 120))
    return players.model.double(), Batch(batch.x.double(), batch.y)


def in_foolbox(
    name: str, settings: dict[str, Any], model: Classifier, batch: Batch, eps: float
) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    theirs = getattr(foolbox.attacks, name)(**{**FIXED, **settings})
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return theirs.run(fmodel, batch.x, batch.y, epsilon=eps)


def in_torchattacks(
    name: str, settings: dict[str, Any], model: Classifier, batch: Batch, eps: float
) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    return getattr(torchattacks, name)(model, eps=eps, **settings)(*batch)


PACKAGES = {"foolbox": in_foolbox, "torchattacks": in_torchattacks}


@pytest.mark.parametrize(
    ("package", "theirs", "settings", "follower", "ours"),
    [
        ("foolbox", "FGSM", {}, Linf(EPS), fgsm(EPS)),
        ("foolbox", "LinfPGD", {"steps": 10, "abs_stepsize": 0.045}, Linf(EPS), pgm(0.045, 10)),
        ("foolbox", "LinfPGD", {"steps": 20, "rel_stepsize": 0.1}, Linf(EPS), pgm(0.1 * EPS, 20)),
        (
            "foolbox",
            "LinfPGD",
            {"steps": 10, "abs_stepsize": 0.045, "random_start": True},
            Linf(EPS, start=EPS),
            pgm(0.045, 10),
        ),
        (
            "foolbox",
            "L2PGD",
            {"steps": 10, "abs_stepsize": 0.25},
            L2(1.0),
            Iterative(NormalizedGradient(0.25), 10),
        ),
        ("torchattacks", "FGSM", {}, Linf(EPS), fgsm(EPS)),
        ("torchattacks", "PGD", {"steps": 20, "alpha": 0.02, **FIXED}, Linf(EPS), pgm(0.02, 20)),
        (
            "torchattacks",
            "PGD",
            {"steps": 10, "alpha": 0.045, "random_start": True},
            Linf(EPS, start=EPS),
            pgm(0.045, 10),
        ),
        (
            "torchattacks",
            "PGDL2",
            {"steps": 10, "alpha": 0.25, **FIXED},
            L2(1.0),
            Iterative(NormalizedGradient(0.25), 10),
        ),
        (
            "torchattacks",
            "MIFGSM",
            {"steps": 10, "alpha": 0.045, "decay": 1.0},
            Linf(EPS),
            Iterative(Momentum(SignGradient(0.045), 1.0, normalize=True), 10),
        ),
    ],
    ids=[
        "FGSM of foolbox",
        "PGM-10 of foolbox",
        "PGM-20 of foolbox",
        "PGM-10 of foolbox from a random start",
        "PGM-10 of foolbox in L2",
        "FGSM of torchattacks",
        "PGM-20 of torchattacks",
        "PGM-10 of torchattacks from a random start",
        "PGM-10 of torchattacks in L2",
        "MI-FGSM of torchattacks",
    ],
)
def test_the_same_adversarial_images(
    doubles: tuple[Classifier, Batch],
    package: str,
    theirs: str,
    settings: dict[str, float],
    follower: Perturbation,
    ours: Solver,
) -> None:
    model, batch = doubles
    torch.manual_seed(1)
    expected = PACKAGES[package](theirs, settings, model, batch, follower.eps)
    torch.manual_seed(1)
    adversarial = attack(model, follower, ours, batch).x
    assert (adversarial - expected).abs().max() < 1e-6
    # Not because neither moves: the attack does harm.
    right = [float((model(x).argmax(1) == batch.y).float().mean()) for x in (batch.x, adversarial)]
    assert right[1] < right[0] - 0.2


def test_the_same_targeted_images(doubles: tuple[Classifier, Batch]) -> None:
    """Torchattacks takes the targets in the place of labels."""
    torchattacks = pytest.importorskip("torchattacks")
    model, batch = doubles
    targets = (batch.y + 1) % 10
    theirs = torchattacks.PGD(model, eps=EPS, steps=20, alpha=0.02, **FIXED)
    theirs.set_mode_targeted_by_label(quiet=True)
    ours = Adversary(model, Linf(EPS, loss=targeted_cross_entropy), pgm(0.02, 20))
    adversarial = ours(*batch, targets)
    assert (adversarial - theirs(batch.x, targets)).abs().max() < 1e-6
    hit = [float((model(x).argmax(1) == targets).float().mean()) for x in (batch.x, adversarial)]
    assert hit[1] > hit[0] + 0.05


@pytest.fixture(scope="module", params=[20, 100])
def pgm_left(request: pytest.FixtureRequest, players: Players) -> tuple[int, float]:
    """The steps of PGM, and the accuracy that it leaves."""
    follower, solver = Linf(EPS, start=1e-4), pgm(EVALUATION_STEP * EPS, request.param)
    return request.param, accuracy(players.model, players.test, follower, solver)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_accuracy_that_is_left(
    players: Players, pgm_left: tuple[int, float], package: str
) -> None:
    """Within one point, on every test image."""
    steps, ours = pgm_left
    name, step_size = {"foolbox": ("LinfPGD", "abs_stepsize"), "torchattacks": ("PGD", "alpha")}[
        package
    ]
    settings = {"steps": steps, step_size: EVALUATION_STEP * EPS, **FIXED}
    batch = next(batches(players.test, len(players.test)))
    adversarial = PACKAGES[package](name, settings, players.model, batch, EPS)
    theirs = float((players.model(adversarial).argmax(1) == batch.y).float().mean())
    assert abs(ours - theirs) <= 0.01
    assert ours < accuracy(players.model, players.test) - 0.2
