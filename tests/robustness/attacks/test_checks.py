"""What attacks are given: one loss or one y for all images, batches of one's own, numpy."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel import BilevelError, Oracle, Parametric, Solver, ZeroSum, pgm
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
def test_a_perturbation_that_was_trained_before(batch_size: int) -> None:
    """Its accuracy does not depend on the batch size."""
    some, model, threat = image_set(20), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Universal()
    solver = Parametric(0.3 * torch.ones(1, 1, 4, 4))
    moved = (some.images / 255 + 0.3).clamp(0, 1)
    expected = (model(moved).argmax(1) == some.labels).float().mean().item()
    told = accuracy(model, some, threat, solver, batch_size=batch_size)
    assert told == pytest.approx(expected)
    battery = Battery([SolverAttack("trained", threat, solver, alone=True)], eps=1.0)
    right, (outcome,) = battery.run(model, some)
    assert not outcome.problem
    assert torch.equal(outcome.broken, right & (model(moved).argmax(1) != some.labels))


class Stored(Solver):
    """A perturbation found elsewhere, or what a generator makes of no image."""

    def answer(self, oracle: Oracle) -> Tensor:
        return oracle.project(torch.full_like(oracle.init(), 0.2))


def test_a_perturbation_that_no_solve_searches_is_the_same_for_every_batch() -> None:
    some, model, threat = image_set(20), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Universal()
    batch = Batch(some.images / 255, some.labels)
    moved = (batch.x + 0.2).clamp(0, 1)
    assert torch.equal(SolverAttack("stored", threat, Stored()).perturb(model, batch, 0), moved)
    expected = (model(moved).argmax(1) == some.labels).float().mean().item()
    for size in (1, 7, 100):
        assert accuracy(model, some, threat, Stored(), batch_size=size) == pytest.approx(expected)


class OfNodes(Linf):
    """A change of one part of the data, in a form of its own."""

    def check(self, batch: Any) -> None:
        pass

    def init(self, batch: Any) -> Tensor:
        return torch.zeros_like(batch.x["nodes"])

    def perturbed(self, y: Tensor, batch: Any) -> Tensor:
        return batch.x["nodes"] + y


class Coarse(Linf):
    """A change of 2 × 2 pixels at a time, of data beyond [0, 1]."""

    def check(self, batch: Batch) -> None:
        pass

    def init(self, batch: Batch) -> Tensor:
        return batch.x.new_zeros(len(batch.x), 1, 2, 2)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return self.clip(y)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return batch.x + F.interpolate(y, scale_factor=2)


def own_loss(logits: Tensor, batch: Batch) -> Tensor:
    return margin(logits, batch)


def test_threat_models_with_data_and_a_y_of_their_own_form() -> None:
    x, y = images()
    coarse = SolverAttack("PGM", Coarse(0.1), pgm(0.1, 2))
    moved = coarse.perturb(classifier(), Batch(5 * x, y), 0) - 5 * x
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.1), rtol=0, atol=1e-6)
    torch.testing.assert_close(moved, F.interpolate(moved[..., ::2, ::2], scale_factor=2))
    batch: Any = Batch({"nodes": 5 * x}, y)  # type: ignore[arg-type]
    nodes = SolverAttack("PGM", OfNodes(0.1, bounds=None, loss=own_loss), pgm(0.1, 2))
    expected = SolverAttack("PGM", Linf(0.1, bounds=None, loss=own_loss), pgm(0.1, 2))
    told = expected.perturb(classifier(), Batch(5 * x, y), 0)
    assert torch.equal(nodes.perturb(classifier(), batch, 0), told)


def test_labels_may_be_none() -> None:
    """Of a loss that reads none."""
    x, _ = images()
    threat = Linf(0.1, loss=lambda outputs, batch: outputs.square().sum(1))
    batch: Any = Batch(x, None)  # type: ignore[arg-type]
    assert SolverAttack("PGM", threat, pgm(0.1, 2)).perturb(classifier(), batch, 0).shape == x.shape


def test_targets_make_a_targeted_batch() -> None:
    """Which a loss of one's own can tell, and which is saved."""
    seen: list[Any] = []

    def noting(logits: Tensor, batch: Any) -> Tensor:
        seen.append(batch)
        return targeted_dlr(logits, batch)

    tried = SolverAttack("APGD-T", Linf(0.1, loss=noting), APGD(steps=2), targets=2)
    tried.perturb(classifier(), images(), 1)
    assert {type(batch) for batch in seen} == {Targeted}
    assert torch.equal(pickle.loads(pickle.dumps(seen[0])).target, seen[0].target)


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
