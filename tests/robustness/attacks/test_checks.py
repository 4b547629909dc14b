"""What attacks are given: one loss or one y for all images, batches of one's own, numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel import BilevelError, Parametric, Solver, ZeroSum, pgm
from bilevel.robustness import (
    APGD,
    Batch,
    Battery,
    CarliniWagner,
    Linf,
    RandomSampling,
    SolverAttack,
    Square,
    Targeted,
    Threat,
    accuracy,
    attack,
)
from bilevel.robustness.threats.losses import margin, targeted_dlr
from tests.images import image_set

SOLVERS = pytest.mark.parametrize(
    "solver", [Square(3), RandomSampling(3), APGD(steps=3), CarliniWagner(steps=3)], ids=repr
)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval()


def images(count: int = 8) -> Batch:
    return Batch(torch.rand(count, 1, 4, 4), torch.arange(count) % 5)


def mean_margin(logits: Tensor, batch: Batch) -> Tensor:
    return margin(logits, batch).mean()


@SOLVERS
def test_one_loss_for_many_images(solver: Solver) -> None:
    """Of two points the better one on the average would be kept for all images."""
    threat = Linf(0.1, start=0.1, loss=mean_margin)
    with pytest.raises(BilevelError, match=r"is one number for 8 images: .* value per image"):
        attack(classifier(), threat, solver, images())
    attack(classifier(), threat, solver, images(1))  # whose mean is its loss
    attack(classifier(), threat, pgm(0.05, 3), images())  # which compares none


class Universal(Threat):
    """One perturbation for all images, ‖y‖∞ ≤ 0.3."""

    def __init__(self, rows: tuple[int, ...] = (1,)) -> None:
        super().__init__(loss=lambda logits, batch: F.cross_entropy(logits, batch.y))
        self.rows = rows

    def init(self, batch: Batch) -> Tensor:
        return torch.rand(*self.rows, 1, 4, 4) - 0.5

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y.clamp(-0.3, 0.3)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return (batch.x + y).clamp(0, 1)


@pytest.mark.parametrize("rows", [(1,), ()])
def test_one_loss_for_one_perturbation(rows: tuple[int, ...]) -> None:
    """Points are compared for all images at once, as they should be."""
    batch, threat = images(), Universal(rows)
    found = attack(classifier(), threat, RandomSampling(20), batch)
    clean = Batch(batch.x, batch.y)
    before, after = (threat.loss(classifier()(one.x), one) for one in (clean, found))
    assert after > before
    moved = found.x - batch.x
    inside = (found.x > 0) & (found.x < 1)
    spread = moved.masked_fill(~inside, -1).amax(0) - moved.masked_fill(~inside, 1).amin(0)
    assert spread[inside.any(0)].abs().max() < 1e-6


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_one_perturbation_for_each_batch_is_no_accuracy(batch_size: int) -> None:
    """It would depend on the batch size; of a perturbation trained before it does not."""
    some, model, threat = image_set(20), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Universal()
    attacked = SolverAttack("PGM", threat, pgm(0.1, 3))
    with pytest.raises(BilevelError, match=r"share one y of Universal, .* batch_size; train Para"):
        accuracy(model, some, threat, pgm(0.1, 3), batch_size=batch_size)
    with pytest.raises(BilevelError, match=r"share one y of Universal"):
        attacked.perturb(model, Batch(some.images / 255, some.labels), 0)
    solver = Parametric(0.3 * torch.ones(1, 1, 4, 4))
    moved = (some.images / 255 + 0.3).clamp(0, 1)
    expected = (model(moved).argmax(1) == some.labels).float().mean().item()
    told = accuracy(model, some, threat, solver, batch_size=batch_size)
    assert told == pytest.approx(expected)
    battery = Battery([SolverAttack("trained", threat, solver, alone=True)], eps=1.0)
    right, (outcome,) = battery.run(model, some)
    assert not outcome.problem
    assert torch.equal(outcome.broken, right & (model(moved).argmax(1) != some.labels))


def test_the_check_draws_no_random_numbers() -> None:
    """Figures of a seed stay what they were."""

    class Noted(Linf):
        def init(self, batch: Batch) -> Tensor:
            starts.append(super().init(batch))
            return starts[-1]

    starts: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    torch.manual_seed(3)
    accuracy(model, image_set(9), Noted(0.1, start=0.1), pgm(0.1, 1))
    told = torch.rand(1)
    assert len(starts) == 2  # of the attack and of the check
    torch.manual_seed(3)
    image_set(9)
    torch.rand(1, 9, 4, 4)
    assert torch.equal(torch.rand(1), told)


class Masked(NamedTuple):
    """Images with what a threat model reads besides."""

    x: Tensor
    y: Tensor
    mask: Tensor


class Masking(Linf):
    def project(self, y: Tensor, batch: Any) -> Tensor:
        return super().project(y * batch.mask, batch)


def masked() -> Masked:
    x, y = images()
    return Masked(x, y, (torch.arange(4) < 2).float().expand_as(x))


def test_an_attack_returns_all_fields() -> None:
    batch = masked()
    found = attack(classifier(), Masking(0.1), pgm(0.1, 2), batch)  # type: ignore[arg-type]
    assert isinstance(found, Masked)
    assert found.mask is batch.mask
    assert found.y is batch.y
    loose = SimpleNamespace(**batch._asdict())
    bare = attack(classifier(), Masking(0.1), pgm(0.1, 2), loose)  # type: ignore[arg-type]
    assert isinstance(bare, Batch)
    assert torch.equal(bare.x, found.x)


class MaskedAndTargeted(NamedTuple):
    """The same, with a target to be filled in."""

    x: Tensor
    y: Tensor
    mask: Tensor
    target: Tensor


@pytest.mark.parametrize("more", [False, True])
def test_targets_are_added_to_a_batch_of_ones_own(*, more: bool) -> None:
    batch: Any = masked()
    if more:
        batch = MaskedAndTargeted(*batch, torch.zeros(1))
    threat = Masking(0.1, loss=targeted_dlr)
    tried = SolverAttack("APGD-T", threat, APGD(steps=3), targets=2)
    model = classifier()
    ranked = model(batch.x).scatter(1, batch.y[:, None], -torch.inf).argsort(1, descending=True)
    for rank in range(2):
        moved = tried.perturb(model, batch, rank) - batch.x
        assert not moved[..., 2:].any()
        told = Targeted(batch.x, batch.y, ranked[:, rank])
        alone = Masking(0.1, loss=lambda logits, batch, told=told: targeted_dlr(logits, told))
        expected = attack(model, alone, APGD(steps=3), Masked(*batch[:3])).x  # type: ignore[arg-type]
        assert torch.equal(moved, expected - batch.x)


def test_numpy_is_told_to_be_turned_into_tensors() -> None:
    x, y = (part.numpy() for part in images())
    for threat in (Linf(0.1), Linf(0.1, bounds=None)):
        with pytest.raises(BilevelError, match=r"images are a ndarray: .* torch.from_numpy"):
            attack(classifier(), threat, pgm(0.1, 1), Batch(x, y))
        leader = ZeroSum(classifier(), threat)
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        game = bilevel.Bilevel(leader, threat, pgm(0.1, 1), leader_opt=optimizer)
        with pytest.raises(BilevelError, match=r"torch.from_numpy"):
            game.step(Batch(x, y))


class Scaled(Linf):
    """y in units of a scale for each feature: the classifier's inputs tell x + y no more."""

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return batch.x + 5 * y


def test_points_on_the_way_are_no_y_where_y_is_scaled() -> None:
    """Projected as if they were, points outside the threat model would count."""
    threat = Scaled(0.1, bounds=None)
    with pytest.raises(
        BilevelError, match=r"keep_broken is given for Scaled: .* in project instead"
    ):
        SolverAttack("APGD", threat, APGD(), keep_broken=True)
    SolverAttack("APGD", threat, APGD())
