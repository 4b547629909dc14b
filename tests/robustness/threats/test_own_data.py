"""Threat models of other data: losses, batches and classifiers of one's own."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel import BilevelError, Solver, ZeroSum, pgm
from bilevel.robustness import APGD, L2, Batch, Linf, SolverAttack, Square, attack
from bilevel.robustness.threats.losses import margin
from tests.images import image_set


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def test_a_loss_of_ones_own_may_have_other_labels() -> None:
    """Regression is trained on and attacked like classification."""

    def squared(outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs.squeeze(1) - batch.y).square()

    threat = Linf(0.1, loss=squared)
    leader = ZeroSum(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), threat)
    batch = Batch(torch.rand(4, 1, 4, 4), torch.rand(4))
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.01)
    bilevel.Bilevel(leader, threat, pgm(0.1, 2), leader_opt=optimizer).step(batch)
    adversarial = attack(leader.model, threat, pgm(0.05, 4), batch)
    before, after = (squared(leader.model(one.x), one).mean() for one in (batch, adversarial))
    assert after > before


class Masked(NamedTuple):
    """Images with the pixels that an adversary may change."""

    x: Tensor
    y: Tensor
    mask: Tensor


class Masking(Linf):
    """‖δ‖∞ ≤ ε on the mask."""

    def project(self, y: Tensor, batch: Masked) -> Tensor:  # type: ignore[override]
        return super().project(y * batch.mask, Batch(batch.x, batch.y))


@pytest.mark.parametrize("keep_broken", [False, True])
@pytest.mark.parametrize("solver", [pgm(0.1, 3), APGD(steps=3), Square(3)], ids=repr)
def test_a_batch_of_ones_own_reaches_the_threat_model(
    solver: bilevel.Solver, *, keep_broken: bool
) -> None:
    images, mask = image_set(6), torch.zeros(6, 1, 4, 4)
    mask[..., :2] = 1
    batch = Masked(images.images / 255, images.labels, mask)
    kept = SolverAttack("masked", Masking(0.1), solver, keep_broken=keep_broken)
    moved = kept.perturb(classifier(), batch, 0) - batch.x  # type: ignore[arg-type]
    assert (moved[..., :2] != 0).any()
    assert not moved[..., 2:].any()


def test_a_loss_of_ones_own_reads_what_the_model_returns() -> None:
    """A dict, as of torchvision's segmentation; the losses of the kit read logits."""

    class Segmentation(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": torch.cat([x, 1 - x], 1)}

    def pixelwise(output: dict[str, Tensor], batch: Batch) -> Tensor:
        return F.cross_entropy(output["out"], batch.y, reduction="none").flatten(1).mean(1)

    batch = Batch(torch.full((2, 1, 4, 4), 0.5), torch.randint(2, (2, 4, 4)))
    moved = attack(Segmentation(), Linf(0.1, loss=pixelwise), pgm(0.1, 1), batch).x - batch.x
    torch.testing.assert_close(moved.squeeze(1), 0.1 * (2.0 * batch.y - 1))
    with pytest.raises(BilevelError, match=r"the classifier returned a dict .* logits"):
        attack(Segmentation(), Linf(0.1), pgm(0.1, 1), Batch(batch.x, batch.y[:, 0, 0]))


class Quantised(nn.Module):
    """A classifier whose images pass through numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.model = classifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.from_numpy((x.detach().numpy() * 16).round() / 16))


def test_a_classifier_without_a_gradient_in_the_image() -> None:
    images = image_set(20)
    batch = Batch(images.images / 255, images.labels)
    with pytest.raises(BilevelError, match=r"the classifier's output has no gradient .*surrogate="):
        attack(Quantised(), Linf(0.2), pgm(0.1, 2), batch)
    attack(Quantised(), Linf(0.2, loss=margin), Square(20), batch)  # which takes none
    surrogate = SolverAttack("BPDA", Linf(0.2), pgm(0.1, 2), surrogate=classifier())
    moved = surrogate.perturb(Quantised(), batch, 0)
    right = [(Quantised()(x).argmax(1) == batch.y).sum() for x in (batch.x, moved)]
    assert right[1] < right[0]


class SignalToNoise(L2):
    """Noise a number of decibels below each signal, as docs/threat_models.md has it."""

    def __init__(self, decibels: float, **settings: Any) -> None:
        super().__init__(10 ** (-decibels / 20), bounds=None, **settings)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return batch.x + y * batch.x.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("solver", [L2(0.1).pgm(0.05, 3), APGD(steps=3), Square(3)], ids=repr)
def test_a_ratio_of_signal_to_noise(solver: Solver) -> None:
    scales = torch.tensor([1.0, 30.0, 2000.0, 0.01])[:, None, None, None]
    signals = Batch(scales * torch.randn(4, 1, 1, 16), torch.tensor([0, 1, 2, 0]))
    moved = attack(classifier(), SignalToNoise(20), solver, signals).x
    noise, power = ((x.flatten(1).norm(dim=1)) for x in (moved - signals.x, signals.x))
    decibels = 20 * (power / noise).log10()  # infinite where Square finds nothing
    assert decibels.min() == pytest.approx(20, rel=1e-3)
    assert decibels.isfinite().sum() >= 2
