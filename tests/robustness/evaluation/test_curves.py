"""Curves: closed forms, the stopping rule, and that a longer run continues the shorter one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, Iterative, pgm
from bilevel.robustness import (
    EVALUATION_STEP,
    Curve,
    ImageSet,
    Linf,
    Norm,
    Splits,
    accuracy,
    correct,
    sample,
)
from bilevel.robustness.evaluation import curves
from bilevel.robustness.evaluation.curves import accuracy_by_epsilon, accuracy_by_iterations
from tests.images import image_set
from tests.problems import BatchNormNet
from tests.robustness.evaluation.faults import FAULTS, Faulty


class Brightness(nn.Module):
    """Logits (0, mean of the pixels − ½): robust up to the distance of the mean to ½."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1) - 0.5
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def greys() -> ImageSet:
    """Plain images from ¼ to ¾, labelled by their brightness but for every tenth."""
    levels = torch.arange(64, 192)
    wrong = torch.arange(len(levels)) % 10 == 0
    labels = ((levels > 127) ^ wrong).long()
    return ImageSet(levels.byte().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels, ("dark", "light"))


def distance(images: ImageSet) -> Tensor:
    """How far each image is from being wrong."""
    signed = (images.images.flatten(1).float().mean(1) / 255 - 0.5) * (2 * images.labels - 1)
    return signed.clamp(min=0)


@pytest.mark.parametrize("batch_size", [7, 256])
@pytest.mark.parametrize("eps", [0.031, 0.1, 0.4, 1.0])
def test_against_epsilon_in_closed_form(greys: ImageSet, eps: float, batch_size: int) -> None:
    curve = accuracy_by_epsilon(Brightness(), greys, eps, batch_size=batch_size)
    expected = [(distance(greys) > radius).double().mean().item() for radius in curve.at]
    assert curve.accuracy == pytest.approx(expected, abs=0.011)  # an image at the very edge
    assert curve.accuracy[0] == expected[0] == accuracy(Brightness(), greys)
    assert curve.quantity == "ε"
    assert curve.images == len(greys)


@pytest.mark.parametrize("eps", [0.1, 0.5, 3.0])
def test_in_l2_in_closed_form(greys: ImageSet, eps: float) -> None:
    """The mean of four pixels moves by half of ‖δ‖₂, and ‖δ‖₂ = 2 leads from black to white."""
    curve = accuracy_by_epsilon(Brightness(), greys, eps, norm="l2")
    expected = [(distance(greys) > radius / 2).double().mean().item() for radius in curve.at]
    assert curve.accuracy == pytest.approx(expected, abs=0.011)
    assert curve.at[-1] == 2
    assert {min(2, eps), min(2, 2 * eps)} <= set(curve.at)
    curve = accuracy_by_iterations(Brightness(), greys, eps, norm="l2")
    reach = [min(eps, EVALUATION_STEP * eps * iterations) for iterations in curve.at]
    expected = [(distance(greys) > radius / 2).double().mean().item() for radius in reach]
    assert curve.accuracy == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("eps", [0.031, 8 / 255, 0.1, 0.2, 0.3, 0.5, 1.0])
def test_the_points_against_epsilon(greys: ImageSet, eps: float) -> None:
    """From 0 to 1, once each; among them what the verdict asks for."""
    at = accuracy_by_epsilon(Brightness(), greys, eps).at
    assert at[0] == 0
    assert at[-1] == 1
    assert list(at) == sorted(set(at))
    assert min(b - a for a, b in pairwise(at)) > 1e-4
    assert {eps / 4, eps / 2, eps, min(1, 2 * eps)} <= set(at)


@pytest.mark.parametrize("batch_size", [7, 256])
def test_against_iterations_in_closed_form(greys: ImageSet, batch_size: int) -> None:
    """Every step reaches one step farther, up to ε."""
    eps = 0.2
    curve = accuracy_by_iterations(Brightness(), greys, eps, batch_size=batch_size)
    reach = [min(eps, EVALUATION_STEP * eps * iterations) for iterations in curve.at]
    expected = [(distance(greys) > radius).double().mean().item() for radius in reach]
    assert curve.at == (1, 2, 5, 10, 20, 50, 100)
    assert curve.accuracy == pytest.approx(expected, abs=0.011)
    assert curve.quantity == "iterations"
    assert curve.images == len(greys)


def test_a_batch_may_be_larger_than_those_of_other_measures(greys: ImageSet) -> None:
    """A run goes on from what it has found for the whole batch."""
    many = greys.subset([*range(len(greys))] * 3)
    curve = accuracy_by_iterations(Brightness(), many, 0.2, most=5, batch_size=len(many))
    assert curve.accuracy == accuracy_by_iterations(Brightness(), greys, 0.2, most=5).accuracy


def test_a_longer_run_continues_the_shorter(robust_model: nn.Module, digits: Splits) -> None:
    """Each point is what PGM of so many iterations from the same start gives, in one batch."""
    images = sample(digits.test, 60)
    right = images.subset(correct(robust_model, images).nonzero().squeeze(1))
    torch.manual_seed(1)
    curve = accuracy_by_iterations(robust_model, images, 0.2, most=20)
    assert curve.at == (1, 2, 5, 10, 20)
    for iterations, left in zip(curve.at, curve.accuracy, strict=True):
        torch.manual_seed(1)
        solver = pgm(EVALUATION_STEP * 0.2, int(iterations))
        expected = correct(robust_model, right, Linf(0.2, start=1e-4), solver).sum().item()
        assert left == pytest.approx(expected / len(images))


def test_a_run_costs_its_last_point(greys: ImageSet) -> None:
    """And spares the images that are wrong already."""

    class Counted(Brightness):
        gradients = 0

        def forward(self, x: Tensor) -> Tensor:
            Counted.gradients += x.requires_grad * len(x)
            return super().forward(x)

    accuracy_by_iterations(Counted(), greys, 0.2, most=50)
    assert Counted.gradients == 50 * int(correct(Brightness(), greys).sum())


@pytest.mark.parametrize(
    ("threshold", "end"), [(0.005, 1000), (0.02, 500), (0.045, 200), (0.06, 100)]
)
def test_the_run_ends_where_accuracy_falls_no_longer(
    monkeypatch: pytest.MonkeyPatch, greys: ImageSet, threshold: float, end: int
) -> None:
    """After 100 iterations: that 1, 2 and 5 of them break nothing is not the end."""
    broken_by = torch.tensor([60] * 5 + [150] * 4 + [400] + [10**6] * 90)
    done = 0

    def left(
        model: nn.Module, part: ImageSet, *attack: Linf | Iterative, batch_size: int
    ) -> Tensor:
        nonlocal done
        done += attack[1].steps if attack else 0
        return broken_by > done

    monkeypatch.setattr(curves, "correct", left)
    hundred = greys.subset(range(100))
    curve = accuracy_by_iterations(Brightness(), hundred, 0.2, threshold=threshold)
    assert curve.at[-1] == end


def test_a_threshold_of_zero_ends_the_run_where_nothing_falls(greys: ImageSet) -> None:
    assert accuracy_by_iterations(Brightness(), greys, 0.2, threshold=0.0).at[-1] == 100


class Ridge(nn.Module):
    """Class 0 near one grey; the loss is stationary exactly there."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x.flatten(1).mean(1) - 128 / 255).square()
        return torch.stack([0.01 - away, away - 0.01], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_stationary_image_is_left_by_a_random_start(norm: Norm) -> None:
    pixels = torch.full((10, 1, 2, 2), 128, dtype=torch.uint8)
    plain = ImageSet(pixels, torch.zeros(10).long(), ("near", "far"))
    curve = accuracy_by_epsilon(Ridge(), plain, 0.2, norm=norm)
    assert curve.accuracy[0] == 1
    assert curve.accuracy[-1] == 0
    assert accuracy_by_iterations(Ridge(), plain, 0.4, norm=norm).accuracy[-1] == 0


@pytest.mark.parametrize(
    ("most", "at"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (7, (1, 2, 5, 7)),
        (20, (1, 2, 5, 10, 20)),
        (30, (1, 2, 5, 10, 20, 30)),
    ],
)
def test_the_most_iterations(greys: ImageSet, most: int, at: tuple[int, ...]) -> None:
    assert accuracy_by_iterations(Brightness(), greys, 0.2, most=most).at == at


def test_progress_is_told(greys: ImageSet) -> None:
    told: list[tuple[int, int]] = []
    points = accuracy_by_epsilon(Brightness(), greys, 0.2, report=lambda *at: told.append(at)).at
    assert told == [(done, len(points)) for done in range(1, len(points) + 1)]
    told.clear()
    accuracy_by_iterations(Brightness(), greys, 0.2, report=lambda *at: told.append(at))
    assert told[:2] == [(1, 1000), (2, 1000)]
    assert told[-1] == (100, 100)


def test_a_classifier_that_gets_nothing_right(greys: ImageSet) -> None:
    flipped = ImageSet(greys.images, (greys.images.flatten(1)[:, 0] <= 127).long(), greys.classes)
    assert set(accuracy_by_epsilon(Brightness(), flipped, 0.2).accuracy) == {0.0}
    assert set(accuracy_by_iterations(Brightness(), flipped, 0.2).accuracy) == {0.0}


def test_an_accuracy_that_rises_is_seen() -> None:
    """An image that a small ε breaks is attacked again with a larger one.

    Ten steps of 0.01 end in the middle of the pocket, ten of 0.1 jump in and out of it.
    """

    class Pocket(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x.flatten(1).mean(1) - 153 / 255).abs() - 0.02
            return torch.stack([score, torch.zeros_like(score)], 1)

    images = ImageSet(torch.full((4, 1, 2, 2), 128).byte(), torch.zeros(4).long(), ("a", "b"))
    curve = accuracy_by_epsilon(Pocket(), images, 0.1)
    assert dict(zip(curve.at, curve.accuracy, strict=True))[0.1] == 0
    assert curve.accuracy[-1] == 1


def test_a_logit_that_becomes_infinite_under_attack(greys: ImageSet) -> None:
    class Overflow(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (x.amax((1, 2, 3)) < 0.9).float()[:, None]

    curve = accuracy_by_epsilon(Overflow(), greys, 0.2)
    assert "not finite" in curve.problem
    assert curve.at == curve.accuracy == ()


@pytest.mark.parametrize("measure", [accuracy_by_epsilon, accuracy_by_iterations])
def test_an_attack_that_fails_is_the_curves_problem(
    greys: ImageSet, measure: Callable[..., Curve]
) -> None:
    class Detached(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    class Numpy(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.from_numpy(x.numpy()))

    class Full(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise MemoryError
            return super().forward(x)

    assert "no gradient in the image" in measure(Detached(), greys, 0.2).problem
    assert measure(Numpy(), greys, 0.2).problem.startswith("RuntimeError: Can't call numpy()")
    with pytest.raises(MemoryError):
        measure(Full(), greys, 0.2)


@pytest.mark.parametrize("measure", [accuracy_by_epsilon, accuracy_by_iterations])
def test_a_mistake_of_the_caller_is_no_problem_of_an_attack(
    greys: ImageSet, measure: Callable[..., Curve]
) -> None:
    with pytest.raises(BilevelError, match="a radius is a number from 0 on"):
        measure(Brightness(), greys, -1.0)
    with pytest.raises(BilevelError, match=r"norm is 'l7': .* give one of 'linf'"):
        measure(Brightness(), greys, 0.1, norm="l7")
    with pytest.raises(BilevelError, match=r"an attack needs one logit"):
        measure(nn.Flatten(), greys, 0.1)
    with pytest.raises(BrokenPipeError):
        measure(Brightness(), greys, 0.1, report=broken_pipe)


def test_no_iteration_is_no_attack(greys: ImageSet) -> None:
    with pytest.raises(BilevelError, match=r"most is 0: .* give 1, 2"):
        accuracy_by_iterations(Brightness(), greys, 0.1, most=0)


def broken_pipe(done: int, total: int) -> None:
    raise BrokenPipeError


@pytest.mark.parametrize("fault", ["huge logits", "rounded logits"])
def test_masked_gradients_show(fault: str, robust_model: nn.Module, digits: Splits) -> None:
    """PGM follows no gradient, so that neither ε nor iterations help."""
    model, images = Faulty(robust_model, FAULTS[fault]), sample(digits.test, 50)
    assert min(accuracy_by_epsilon(model, images, 0.2).accuracy) > 0.8
    assert min(accuracy_by_iterations(model, images, 0.2).accuracy) > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_attack_leaves_nothing_and_converges(
    seed: int, robust_model: nn.Module, digits: Splits
) -> None:
    torch.manual_seed(seed)
    images = sample(digits.test, 100, seed=seed)
    against_epsilon = accuracy_by_epsilon(robust_model, images, 0.2)
    against_iterations = accuracy_by_iterations(robust_model, images, 0.2)
    assert against_epsilon.accuracy[-1] == 0
    assert against_epsilon.accuracy[0] > 0.9
    assert against_iterations.at[-1] == 100
    assert 0.3 < against_iterations.accuracy[-1] < against_iterations.accuracy[0] - 0.1


@pytest.mark.parametrize("training", [True, False])
def test_the_classifier_is_left_as_it_was(training: bool) -> None:
    model = BatchNormNet(dropout=0.5).train(training)
    before = copy.deepcopy(model.state_dict())
    accuracy_by_epsilon(model, image_set(12), 0.1)
    accuracy_by_iterations(model, image_set(12), 0.1, most=5)
    assert all(module.training is training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
