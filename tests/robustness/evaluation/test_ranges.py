"""The range of inputs that a classifier expects, also of one that has hardly been trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bilevel.robustness import (
    ImageSet,
    Normalize,
    Splits,
    accuracy,
    cross_entropy,
    sample,
    shuffled_batches,
    small_cnn,
)
from bilevel.robustness.evaluation.probed import Probed
from bilevel.robustness.evaluation.ranges import expects_unit_interval
from tests.images import image_set
from tests.robustness.evaluation.faults import FAULTS, Faulty, Forward


@pytest.mark.parametrize(
    ("fault", "range_"), [("0 to 255", "in [0, 255]"), ("-1 to 1", "in [-1, 1]")]
)
def test_the_range_that_is_wanted(
    fault: str, range_: str, robust_model: nn.Module, digits: Splits
) -> None:
    """And what the sentence advises mends it."""
    model = Faulty(robust_model, FAULTS[fault])
    finding = expects_unit_interval(Probed(model, digits.test))
    assert finding.figure.endswith(f"{accuracy(robust_model, digits.test):.1%} {range_}")
    assert f"expects its images {range_}, or it has hardly been trained" in finding.sentence
    assert "Normalize" in finding.sentence
    inside = Normalize(1, [0.0], [1 / 255]) if "255" in fault else Normalize(1, [0.5], [0.5])
    assert expects_unit_interval(Probed(nn.Sequential(inside, model), digits.test)).ok


@pytest.mark.parametrize(
    ("mean", "std", "name"),
    [
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "ImageNet's mean and std"),
        ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616], "CIFAR-10's mean and std"),
        ([], [], "their own mean and std"),
    ],
)
def test_statistics_of_colours(mean: list[float], std: list[float], name: str) -> None:
    """A classifier that knows its images by heart, as they are in that range."""
    pixels = torch.randint(256, (32, 3, 4, 4), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(32) % 8, tuple("abcdefgh"))
    scaled = pixels.float() / 255
    if name.startswith("their own"):
        mean, std = scaled.mean((0, 2, 3)).tolist(), scaled.std((0, 2, 3)).tolist()
    normalize = Normalize(3, mean, std)
    memory = normalize(scaled).flatten(1)

    class Memory(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            known = (torch.cdist(x.flatten(1), memory) < 0.05).float()
            return known @ nn.functional.one_hot(images.labels).float()

    finding = expects_unit_interval(Probed(Memory(), images))
    assert not finding.ok
    assert finding.figure.endswith(f"normalised by {name}")
    assert expects_unit_interval(Probed(nn.Sequential(normalize, Memory()), images)).ok


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [16, 64, 256])
def test_a_classifier_that_is_hardly_trained_has_no_fault(
    seed: int, size: int, digits: Splits
) -> None:
    """BatchNorm has not settled, so that more contrast gains up to 30 points."""
    torch.manual_seed(seed)
    model = small_cnn(channels=1, classes=10)
    train_plainly(model, sample(digits.train, 256), epochs=2)
    assert expects_unit_interval(Probed(model, sample(digits.test, size))).ok


@pytest.mark.parametrize("forward", [FAULTS["0 to 255"], FAULTS["-1 to 1"]])
@pytest.mark.parametrize("epochs", [4, 8])
def test_a_classifier_that_is_somewhat_trained_and_wants_another_range(
    forward: Forward, epochs: int, digits: Splits
) -> None:
    torch.manual_seed(0)
    model = small_cnn(channels=1, classes=10)
    train_plainly(model, sample(digits.train, 256), epochs=epochs)
    finding = expects_unit_interval(Probed(Faulty(model, forward), sample(digits.test, 256)))
    assert not finding.ok
    assert "or it has hardly been trained" in finding.sentence


@pytest.mark.parametrize(("count", "ok"), [(10, True), (100, False)])
def test_a_gain_that_may_be_chance_is_no_fault(count: int, ok: bool) -> None:
    """Six images of ten are right in [0, 1], all of them where a pixel is negative."""

    class Likes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            right = (x[:, 0, 0, 0] > 0.5) | (x.flatten(1).amin(1) < 0)
            return nn.functional.one_hot((~right).long(), 2).float()

    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    pixels[torch.arange(count) % 10 < 6, 0, 0, 0] = 200
    images = ImageSet(pixels, torch.zeros(count).long(), ("a", "b"))
    assert expects_unit_interval(Probed(Likes(), images)).ok is ok


def train_plainly(model: nn.Module, images: ImageSet, *, epochs: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        for batch in shuffled_batches(images, 64, seed=0, epoch=epoch):
            optimizer.zero_grad()
            cross_entropy(model.train()(batch.x), batch).mean().backward()
            optimizer.step()
    model.eval()


def test_images_without_contrast_have_no_range_of_their_own() -> None:
    images = ImageSet(torch.zeros(4, 1, 2, 2).byte(), torch.zeros(4).long(), tuple("abcd"))
    assert expects_unit_interval(Probed(nn.Flatten(), images)).ok


def test_a_range_that_a_classifier_cannot_take_is_not_wanted() -> None:
    """NaN is no right answer, though its argmax is class 0, and no reason to stop."""

    class Roots(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.sqrt().sum((1, 2, 3)).unsqueeze(1)] * 2, 1) * torch.tensor([1, 2])

    images = ImageSet(image_set(9).images, torch.zeros(9).long(), ("a", "b"))
    finding = expects_unit_interval(Probed(Roots(), images))
    assert finding.ok
    assert finding.figure.startswith("0.0% in [0, 1], 0.0% in")
