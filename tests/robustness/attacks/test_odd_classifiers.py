"""Classifiers with infinite slopes, and those that normalise in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import Iterative, NonFiniteError, Solver, fgsm
from bilevel.robustness import (
    APGD,
    L2,
    Batch,
    ImageSet,
    Interpolation,
    Linf,
    Normalize,
    SolverAttack,
    attack,
    batches,
    examples,
    probe,
)
from bilevel.robustness.threats.losses import targeted_margin
from bilevel.updates import Update


class Gamma(nn.Module):
    """Has an infinite slope at black pixels."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).sqrt().sum(1)
        return torch.stack([bright, 3.5 - bright], 1)


@pytest.mark.parametrize("solver", [L2(0.5).pgm(0.1, 5), APGD(steps=5)], ids=repr)
def test_an_infinite_slope_is_followed(solver: Solver) -> None:
    x = torch.full((2, 1, 2, 2), 0.25)
    x[0, 0, 0, 0] = 0
    batch = Batch(x, torch.tensor([1, 0]))  # to be made brighter, and darker
    moved = attack(Gamma(), L2(0.5), solver, batch).x - x
    assert moved[0, 0, 0, 0] > 0.01
    assert (moved.flatten(1).norm(dim=1) > 0.4).all()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_images_that_are_not_numbers_are_told(number: float) -> None:
    class Odd(Linf):
        def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
            return super().perturbed(y, batch) * (number if y.any() else 1)

    batch = Batch(torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]))  # no pixel ends at 0
    with pytest.raises(NonFiniteError, match=r"adversarial images are not finite: .*gradient"):
        attack(nn.Flatten(), Odd(0.1), fgsm(0.1), batch)


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.sub_(0.5).div_(0.25))


def test_a_classifier_that_normalises_in_place() -> None:
    x = torch.rand(6, 1, 4, 4)
    batch, plain = (
        Batch(x.clone(), torch.arange(6) % 3),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
    )
    attacked = SolverAttack("T", Linf(0.1, loss=targeted_margin), fgsm(0.1), targets=1)
    attacked.perturb(InPlace(plain), batch, 0)
    assert torch.equal(batch.x, x)
    attack(InPlace(plain), Interpolation(0.1, layer="model"), fgsm(0.1), batch)
    assert torch.equal(batch.x, x)


def normalised() -> tuple[nn.Module, nn.Module]:
    """A classifier of greys that normalises a copy, and one that normalises in place."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model[1].bias.copy_(torch.tensor([0.0, 0.1]))
    return nn.Sequential(Normalize(1, [0.5], [0.25]), model), InPlace(model)


def test_points_on_the_way_are_seen_as_the_classifier_is_given_them() -> None:
    """The first of two steps breaks the image, and the second one goes back."""

    class Back(Update):
        def forward(self, y: Tensor, gradient: Tensor, context: Tensor, state: Any) -> Any:
            return (torch.zeros_like(y) if y.any() else y - 0.1), state

    batch = Batch(torch.full((1, 1, 2, 2), 0.5), torch.tensor([1]))
    attacked = SolverAttack("it", Linf(0.1), Iterative(Back(), 2), keep_broken=True)
    found = [attacked.perturb(model, batch, 0) for model in normalised()]
    assert torch.equal(*found)
    assert found[0].max() < 0.45


def test_probes_and_pictures_are_of_the_images_that_are_given() -> None:
    images, found = greys(64), []
    batch = next(batches(images, 3))
    for model in normalised():
        shown = examples("FGSM", model, Linf(0.1), fgsm(0.1), batch, images.classes)
        found.append((probe(model, images), torch.stack([one.adversarial for one in shown])))
    (one, moved), (other, moved_in_place) = found
    assert one == other
    assert torch.equal(moved, moved_in_place)


def greys(count: int) -> ImageSet:
    """Images of one grey each, the brighter half of which is the second class."""
    values = torch.linspace(0, 255, count).byte()
    return ImageSet(values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), (values > 120).long(), ("0", "1"))
