"""Accuracy and attacks, on a classifier whose robust accuracy is known in closed form."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, Iterative, NonFiniteError, distributed, fgsm, pgm
from bilevel.robustness import (
    Batch,
    Battery,
    ImageSet,
    Linf,
    SolverAttack,
    accuracy,
    attack,
    batches,
    examples,
    probe,
)
from bilevel.updates import CNN, SignGradient
from tests.images import image_set
from tests.problems import BatchNormNet


class Halfspaces(nn.Module):
    """Logits (0, ⟨w, x⟩ − b): an attack of radius ε moves the second by at most ε‖w‖₁."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(1, 4, 4))
        self.b = nn.Parameter((self.w * 0.5).sum().detach())

    def forward(self, x: Tensor) -> Tensor:
        score = (self.w * x).flatten(1).sum(1) - self.b
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def greys() -> ImageSet:
    """Images between ¼ and ¾, so that the box never cuts a perturbation of up to ¼."""
    pixels = torch.randint(64, 192, (300, 1, 4, 4), dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(2, (300,)), ("below", "above"))


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("batch_size", [7, 256, 1000])
def test_the_robust_accuracy_of_a_linear_classifier(
    greys: ImageSet, eps: float, batch_size: int
) -> None:
    """An image is right under FGSM if its margin is larger than ε‖w‖₁."""
    model = Halfspaces()
    margin = model(greys.images / 255)[:, 1] * (2 * greys.labels - 1)
    expected = (margin > eps * model.w.abs().sum()).float().mean().item()
    attacks, sizes = (Linf(eps), fgsm(eps)) if eps else (), []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    assert accuracy(model, greys, *attacks, batch_size=batch_size) == pytest.approx(expected)
    assert max(sizes) == min(batch_size, 300)
    assert 0.01 < expected < 0.99 or eps == 0.2


def test_an_attack_moves_the_images_and_keeps_their_labels(greys: ImageSet) -> None:
    model = Halfspaces()
    batch = next(batches(greys, 50))
    clean = copy.deepcopy(batch)
    adversarial = attack(model, Linf(0.1), fgsm(0.1), batch)
    direction = (1 - 2 * batch.y).view(-1, 1, 1, 1) * model.w.sign()
    assert torch.allclose(adversarial.x, clean.x + 0.1 * direction)
    assert torch.equal(adversarial.y, clean.y)
    assert torch.equal(batch.x, clean.x)
    assert not adversarial.x.requires_grad


def test_an_example_is_an_image_before_and_after_with_both_classes(greys: ImageSet) -> None:
    model, attacks = Halfspaces(), (Linf(0.02), fgsm(0.02))
    batch = next(batches(greys, 50))
    moved = attack(model, *attacks, batch).x
    said = model(moved).argmax(1)
    assert 0 < (said == batch.y).sum() < 50
    rows = zip(batch.x, moved, batch.y.tolist(), said.tolist(), strict=True)
    shown = examples("FGSM", model, *attacks, batch, greys.classes)
    for one, (before, after, truth, answer) in zip(shown, rows, strict=True):
        assert torch.equal(one.clean, before)
        assert torch.equal(one.adversarial, after)
        expected = ("FGSM", greys.classes[truth], greys.classes[answer])
        assert (one.title, one.label, one.prediction) == expected


@pytest.mark.parametrize("training", [True, False])
def test_neither_player_is_changed(training: bool) -> None:
    """Flags, weights, gradients, BatchNorm's statistics and the attacker's, all as they were."""
    images = image_set(20)
    model = BatchNormNet(dropout=0.5).train(training)
    attacker = Iterative(CNN(1, 0.1, form="two-layer", width=4), 2).train(training)
    before = [copy.deepcopy(part.state_dict()) for part in (model, attacker)]
    first = accuracy(model, images, Linf(0.1), attacker)
    assert accuracy(model, images, Linf(0.1), attacker) == first  # dropout is off
    attack(model, Linf(0.1), attacker, next(batches(images, 5)))
    for part, state in zip((model, attacker), before, strict=True):
        assert all(module.training is training for module in part.modules())
        assert all(p.requires_grad and p.grad is None for p in part.parameters())
        for name, value in part.state_dict().items():
            assert value is None or torch.equal(value, state[name]), name


def test_a_classifier_that_gives_nan_is_neither_right_nor_wrong(greys: ImageSet) -> None:
    model = Halfspaces()
    with torch.no_grad():
        model.b.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"logits are not finite: .*learning rate"):
        accuracy(model, greys)
    with pytest.raises(NonFiniteError, match="the loss is nan where the attack starts"):
        accuracy(model, greys, Linf(0.1), pgm(0.1, 1))


class Spoilt(nn.Module):
    """One of the logits of black images is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.where(mean > 0, mean, math.nan)], 1)


@pytest.mark.parametrize("position", [0, 5, 9])
@pytest.mark.parametrize("batch_size", [2, 3, 10])
def test_a_single_answer_that_is_not_finite_is_enough(position: int, batch_size: int) -> None:
    pixels = torch.full((10, 1, 1, 1), 128, dtype=torch.uint8)
    pixels[position] = 0
    images = ImageSet(pixels, torch.zeros(10).long(), ("a", "b"))
    with pytest.raises(NonFiniteError, match="logits are not finite"):
        accuracy(Spoilt(), images, batch_size=batch_size)


def test_an_answer_of_another_process_that_is_not_finite(
    greys: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another(function) -> list:
        return [function(), (torch.ones(1).bool(), False)]

    monkeypatch.setattr(distributed, "gather_results", with_another)
    with pytest.raises(NonFiniteError, match="logits are not finite"):
        accuracy(Halfspaces(), greys)


def test_an_example_is_predicted_in_evaluation_mode() -> None:
    model, batch = BatchNormNet(dropout=0.5), next(batches(image_set(20), 20))
    before = copy.deepcopy(model.state_dict())
    shown = examples("clean", model, Linf(0.1), pgm(0.1, 0), batch, tuple("abc"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    said = model.eval()(torch.stack([one.adversarial for one in shown])).argmax(1).tolist()
    assert [one.prediction for one in shown] == ["abc"[answer] for answer in said]


def test_half_of_an_attack(greys: ImageSet) -> None:
    """It is no clean accuracy."""
    with pytest.raises(BilevelError, match=r"solver is given without a follower: .* give both"):
        accuracy(Halfspaces(), greys, solver=fgsm(0.1))
    with pytest.raises(BilevelError, match=r"follower is given without a solver: .* give both"):
        accuracy(Halfspaces(), greys, Linf(0.1))


def test_clean_accuracy_counts_what_is_right() -> None:
    """The brightest pixel is the class."""
    pixels = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    for image, brightest in enumerate([0, 1, 2, 3, 3]):
        pixels[image].view(-1)[brightest] = 200
    images = ImageSet(pixels, torch.tensor([0, 1, 2, 3, 0]), tuple("abcd"))
    assert accuracy(nn.Flatten(), images) == 0.8
    assert accuracy(nn.Flatten(), images, batch_size=2) == 0.8
    assert isinstance(next(batches(images, 2)), Batch)


def test_a_solver_that_goes_on_is_measured_from_where_it_is(greys: ImageSet) -> None:
    """Its answer is not trained by the images that it is measured on."""
    solver = Iterative(SignGradient(0.01), 1, warm_start=True)
    model, threat = Halfspaces(), Linf(0.2)
    named = SolverAttack("one step", threat, solver)
    batch = next(batches(greys, 100))
    figures = [accuracy(model, greys, threat, solver, batch_size=100) for _ in range(3)]
    # Nor by those of the batches before.
    cold = Iterative(SignGradient(0.01), 1)
    figures += [accuracy(model, greys, threat, one, batch_size=5) for one in (solver, cold)]
    assert len(set(figures)) == 1
    moved = [named.perturb(model, batch, 0) for _ in range(2)]
    assert torch.equal(*moved)
    examples("one step", model, threat, solver, batch, greys.classes)
    assert solver.kept is None
    # Each batch from the answer that it comes with.
    toward = 0.2 * model.w.detach().sign()
    solver.kept, solver.steps = (toward.expand(5, -1, -1, -1), None), 0
    right = (model(greys.images / 255 + toward)[:, 1] > 0) == greys.labels.bool()
    assert accuracy(model, greys, threat, solver, batch_size=5) == right.double().mean().item()


def test_a_batch_is_no_image_set() -> None:
    batch = Batch(torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4))
    told = r"images is a Batch: .* ImageSet\(bytes, labels, classes\).* another kind"
    for evaluate in (accuracy, probe, Battery([], eps=0.1).run):
        with pytest.raises(BilevelError, match=told):
            evaluate(Halfspaces(), batch)
