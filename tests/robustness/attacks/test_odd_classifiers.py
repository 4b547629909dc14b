"""Attacks on classifiers with infinite slopes, and on those that normalise in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bilevel import NonFiniteError, Solver, fgsm
from bilevel.robustness import APGD, L2, Batch, Interpolation, Linf, SolverAttack, attack
from bilevel.robustness.threats.losses import targeted_margin


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
