"""The interfaces to torchattacks, foolbox, AutoAttack and RobustBench."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, Iterative, Solver, fgsm, pgm
from bilevel.robustness import (
    APGD,
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
    foolbox_attack,
)
from bilevel.robustness.threats.losses import Loss, targeted_cross_entropy, targeted_margin
from bilevel.updates import CNN, NormalizedGradient, SignGradient
from tests.digits import EPS, Players, trained
from tests.problems import BatchNormNet

LINF = Linf(EPS)


def pgm_20(eps: float) -> Solver:
    return pgm(EVALUATION_STEP * eps, 20)


@pytest.fixture(scope="module")
def players() -> Players:
    return trained()


@pytest.fixture(scope="module")
def model(players: Players) -> Classifier:
    return players.model


@pytest.fixture(scope="module")
def batch(players: Players) -> Batch:
    return next(batches(players.test, 100))


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the classifier gets right."""
    return model(x).argmax(1) == y


def assert_unchanged(part: nn.Module, before: dict[str, Tensor | None]) -> None:
    for name, value in part.state_dict().items():
        assert value is before[name] is None or torch.equal(value, before[name]), name
    assert all(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("learned", [True, False])
def test_an_adversary_is_the_attack_of_its_solver(
    players: Players, batch: Batch, learned: bool
) -> None:
    model = players.model
    solver = players.attacker if learned else pgm_20(EPS)
    adversarial = Adversary(model, LINF, solver)(*batch)
    assert torch.equal(adversarial, attack(model, LINF, solver, batch).x)
    assert (adversarial - batch.x).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert right(model, adversarial, batch.y).sum() < right(model, *batch).sum() - 20


@pytest.mark.parametrize("training", [True, False])
def test_an_adversary_changes_neither_player_nor_the_images(training: bool) -> None:
    model = BatchNormNet(dropout=0.5).train(training)
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 2).train(training)
    before = [copy.deepcopy(part.state_dict()) for part in (model, solver)]
    x, y = torch.rand(5, 1, 4, 4, requires_grad=True), torch.zeros(5, dtype=torch.int64)
    clean = x.detach().clone()
    adversary = Adversary(model, Linf(0.1), solver)
    first = adversary(x, y)
    assert not first.requires_grad
    assert torch.equal(first, adversary(x, y))  # dropout is off
    assert torch.equal(x, clean)
    assert x.grad is None
    for part, state in zip((model, solver), before, strict=True):
        assert_unchanged(part, state)
        assert all(p.grad is None for p in part.parameters())
        assert all(module.training is training for module in part.modules())


X, Y = torch.linspace(0, 1, 192).view(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        (X.mul(255).byte(), Y, r"images are torch.uint8 .*: .* bytes divided by 255"),
        (X[0], Y, r"images are torch.float32 of shape \(1, 8, 8\): .*\(B, C, H, W\)"),
        (X * 2 - 1, Y, r"images lie in \[-1, 1\]: .* normalise inside the classifier"),
        (X * 255, Y, r"images lie in \[0, 255\]: "),
        (X * (1 + 1e-5), Y, r"images lie in \[0, 1\.0000\d+\]: "),
        (X.where(X > 0, torch.nan), Y, "images have pixels that are not finite: "),
        (X, Y[:2], r"labels are torch.int64 of shape \(2,\): .* int64 of shape \(3,\)"),
        (X, Y.float(), r"labels are torch.float32 of shape \(3,\): "),
        (X, Y.view(3, 1), r"labels are torch.int64 of shape \(3, 1\): "),
    ],
    ids=[
        "bytes",
        "one image",
        "normalised",
        "0–255",
        "rounded",
        "NaN",
        "too few",
        "float labels",
        "columns",
    ],
)
def test_what_an_adversary_cannot_attack(x: Tensor, y: Tensor, complaint: str) -> None:
    with pytest.raises(BilevelError, match=f"^{complaint}"):
        Adversary(nn.Flatten(), LINF, fgsm(EPS))(x, y)


def test_a_solver_that_goes_on_is_left_where_it_is(model: Classifier, batch: Batch) -> None:
    """So that training goes on from the answer that it had, and a call can be repeated."""
    solver = Iterative(SignGradient(0.01), 1, warm_start=True)
    adversary = Adversary(model, LINF, solver)
    assert torch.equal(adversary(*batch), adversary(*batch))
    assert solver.kept is None
    foolbox = pytest.importorskip("foolbox")
    fmodel = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    foolbox_attack(Linf, lambda eps: solver)(fmodel, *batch, epsilons=EPS)
    assert solver.kept is None


def test_an_adversary_shows_its_threat_model_and_solver() -> None:
    shown = repr(Adversary(nn.Flatten(), LINF, fgsm(EPS)))
    assert shown.startswith("Adversary(Linf(eps=0.2, start=0.0, loss=cross_entropy), Iterative(")


def test_in_the_multiattack_of_torchattacks(players: Players, batch: Batch) -> None:
    """An image is right there if it is right under both of its attacks."""
    torchattacks = pytest.importorskip("torchattacks")
    model = players.model
    ours = Adversary(model, LINF, players.attacker)
    theirs = torchattacks.PGD(model, eps=EPS, alpha=0.02, steps=20, random_start=False)
    both = torchattacks.MultiAttack([ours, theirs])
    left = [right(model, each(*batch), batch.y) for each in (ours, theirs, both)]
    assert torch.equal(left[2], left[0] & left[1])
    assert left[2].sum() < left[0].sum()


@pytest.mark.parametrize(
    ("make_follower", "solver", "epsilons", "norm"),
    [
        (Linf, "learned", [0.0, 0.1, EPS], torch.inf),
        (Linf, pgm_20, [0.0, 0.1, EPS], torch.inf),
        (L2, lambda eps: Iterative(NormalizedGradient(eps / 4), 10), [0.5, 1.5], 2),
        (Linf, lambda eps: APGD(steps=10), [0.1, EPS], torch.inf),
    ],
    ids=["learned", "PGM-20", "PGM-10 in L2", "APGD"],
)
def test_in_foolbox(
    players: Players,
    batch: Batch,
    make_follower: Callable[[float], Perturbation],
    solver: Callable[[float], Solver] | str,
    epsilons: list[float],
    norm: float,
) -> None:
    """At each ε what our own attack finds there, and foolbox's three results agree on it."""
    foolbox = pytest.importorskip("foolbox")
    model = players.model
    make_solver = solver if callable(solver) else lambda eps: players.attacker
    before = copy.deepcopy(model.state_dict())
    raw, clipped, success = foolbox_attack(make_follower, make_solver)(
        foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), *batch, epsilons=epsilons
    )
    for eps, found, inside, adversarial in zip(epsilons, raw, clipped, success, strict=True):
        ours = attack(model, make_follower(eps), make_solver(eps), batch).x if eps else batch.x
        assert torch.allclose(found, ours, atol=1e-6)
        assert torch.allclose(inside, found, atol=1e-6)
        assert (inside - batch.x).flatten(1).norm(norm, dim=1).max() <= eps + 1e-5
        assert torch.equal(adversarial, ~right(model, inside, batch.y))
    assert success[-1].sum() > success[0].sum() + 10
    assert_unchanged(model, before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("loss", [targeted_cross_entropy, targeted_margin])
def test_foolbox_has_targets(model: Classifier, batch: Batch, loss: Loss) -> None:
    """Its own PGD moves along the cross entropy of the target as ours does."""
    foolbox = pytest.importorskip("foolbox")
    double, x = copy.deepcopy(model).double(), batch.x.double()
    fmodel = foolbox.PyTorchModel(double, bounds=(0, 1), device="cpu")
    targets = (double(x).argmax(1) + 1) % 10
    criterion = foolbox.criteria.TargetedMisclassification(targets)
    ours = foolbox_attack(partial(Linf, loss=loss), lambda eps: pgm(0.045, 10))
    raw, _, success = ours(fmodel, x, criterion, epsilons=EPS)
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=0.045, steps=10, random_start=False)
    expected, _, reached = theirs(fmodel, x, criterion, epsilons=EPS)
    if loss is targeted_cross_entropy:
        assert (raw - expected).abs().max() < 1e-6
    assert success.sum() >= reached.sum() - 10 > 0


def test_foolbox_models_of_other_bounds(model: Classifier, batch: Batch) -> None:
    """Images and ε in units of the bounds: the same images as within [0, 1]."""
    foolbox = pytest.importorskip("foolbox")
    unit = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, expected, broken = foolbox_attack(Linf, fgsm)(unit, *batch, epsilons=EPS)
    wide = unit.transform_bounds((-1, 1))
    attack = foolbox_attack(partial(Linf, bounds=wide.bounds), fgsm)
    _, found, told = attack(wide, 2 * batch.x - 1, batch.y, epsilons=2 * EPS)
    assert torch.equal(told, broken)
    assert (2 * expected - 1 - found).abs().mean() < 1e-3  # a gradient of rounding may turn over


def test_foolbox_repeats_a_random_start(model: Classifier, batch: Batch) -> None:
    foolbox = pytest.importorskip("foolbox")
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    once = foolbox_attack(lambda eps: Linf(eps, start=eps), fgsm)
    found = [each(fmodel, *batch, epsilons=[EPS])[2].sum() for each in (once, once.repeat(8))]
    assert found[1] > found[0]


def test_what_foolbox_is_refused(model: Classifier, batch: Batch) -> None:
    foolbox = pytest.importorskip("foolbox")
    ours = foolbox_attack(Linf, fgsm)
    bytes_model = foolbox.PyTorchModel(model, bounds=(0, 255), device="cpu")
    with pytest.raises(
        BilevelError, match=r"bounds \(0, 255\) and .* \[0, 1\]: .*bounds\(\(0, 1\)\)"
    ):
        ours(bytes_model, batch.x * 255, batch.y, epsilons=8)
    other = foolbox_attack(partial(Linf, bounds=None), fgsm)
    with pytest.raises(BilevelError, match=r"bounds \(0, 255\) and the threat model None: "):
        other(bytes_model, batch.x * 255, batch.y, epsilons=8)
    run = partial(ours, bytes_model.transform_bounds((0, 1)), batch.x, epsilons=EPS)
    with pytest.raises(BilevelError, match=r"criterion is TargetedMisclassification: .*untargeted"):
        run(foolbox.criteria.TargetedMisclassification(batch.y))
    toward = foolbox_attack(partial(Linf, loss=targeted_margin), fgsm)
    with pytest.raises(BilevelError, match=r"criterion is Misclassification: .* is targeted; give"):
        toward(bytes_model.transform_bounds((0, 1)), *batch, epsilons=EPS)
    with pytest.raises(BilevelError, match=r"labels are torch.float32 of shape \(100,\)"):
        run(batch.y.float())
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        run(batch.y, steps=3)


def test_foolbox_has_to_know_the_norm() -> None:
    foolbox = pytest.importorskip("foolbox")

    class Brighter(Perturbation):
        def clip(self, delta: Tensor) -> Tensor:
            return delta.clamp(0, self.eps)

        def noise(self, like: Tensor) -> Tensor:
            return torch.zeros_like(like)

        def norm(self, delta: Tensor) -> Tensor:
            return delta.flatten(1).amax(1)

        def ascent(self, step: float) -> SignGradient:
            return SignGradient(step)

    assert foolbox_attack(Linf, fgsm).distance is foolbox.distances.linf
    assert foolbox_attack(partial(L2, start=1e-4), fgsm).distance is foolbox.distances.l2
    with pytest.raises(BilevelError, match=r"Brighter is none of Linf, L2 and L1: .*give a subcl"):
        _ = foolbox_attack(Brighter, fgsm).distance


def test_without_foolbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox.attacks.base", None)
    with pytest.raises(BilevelError, match=r"cannot import foolbox .* pip install foolbox$"):
        foolbox_attack(Linf, fgsm)


def test_a_classifier_in_autoattack(model: Classifier, batch: Batch) -> None:
    """Its step sizes adapt: it finds what PGM-20 finds, or more."""
    pyautoattack = pytest.importorskip("pyautoattack")
    before = copy.deepcopy(model.state_dict())
    x, y = batch.x[:50], batch.y[:50]
    autoattack = pyautoattack.AutoAttack(
        model, eps=EPS, version="custom", attacks=["apgd-ce"], seed=0
    )
    adversarial, answers = autoattack.run_standard_evaluation(x, y)
    assert (adversarial - x).abs().max() <= EPS + 1e-6
    assert torch.equal(answers, model(adversarial).argmax(1))
    under_pgm = right(model, Adversary(model, LINF, pgm_20(EPS))(x, y), y)
    assert 0 < (answers == y).sum() <= under_pgm.sum()
    assert_unchanged(model, before)


@pytest.fixture
def robustbench(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> ModuleType:
    """RobustBench with pyautoattack for AutoAttack and digits for CIFAR-10.

    It imports AutoAttack as the authors' repository names it, which is on no package index;
    pyautoattack is that code, with other names for some arguments.
    """
    pyautoattack = pytest.importorskip("pyautoattack")

    class AutoAttack(pyautoattack.AutoAttack):
        def __init__(self, model: nn.Module, *, log_path: None, **settings: Any) -> None:
            super().__init__(model, seed=0, **settings)
            self.square.n_queries, self.fab.n_iter = 100, 20

        def run_standard_evaluation(self, x: Tensor, y: Tensor, *, bs: int, **kept: Any) -> Tensor:
            return super().run_standard_evaluation(x, y, batch_size=bs, **kept)[0]

    autoattack = ModuleType("autoattack")
    autoattack.AutoAttack = AutoAttack
    monkeypatch.setitem(sys.modules, "autoattack", autoattack)
    monkeypatch.setitem(sys.modules, "autoattack.state", pyautoattack.state)
    evaluation = pytest.importorskip("robustbench.eval")
    monkeypatch.setitem(
        sys.modules["robustbench.data"]._clean_dataset_loaders,
        evaluation.BenchmarkDataset.cifar_10,
        lambda count, data_dir, preprocessing: (batch.x[:count], batch.y[:count]),
    )
    return evaluation


def test_a_classifier_in_robustbench(players: Players, robustbench: ModuleType) -> None:
    """Its benchmark, the standard version of AutoAttack, takes the classifier as it is."""
    model, first = players.model, players.test.subset([0, 1, 2, 3, 4])
    before = copy.deepcopy(model.state_dict())
    clean, robust = robustbench.benchmark(model, n_examples=5, threat_model="Linf", eps=EPS)
    assert clean == pytest.approx(accuracy(model, first))
    assert 0 < robust <= accuracy(model, first, LINF, pgm_20(EPS)) < clean
    assert_unchanged(model, before)
