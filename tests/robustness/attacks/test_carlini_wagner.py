"""CW in the L∞ norm: the batched search equals the authors', which takes one image at a time."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bilevel import BilevelError, FollowerProblem, Oracle, Solver, ZeroSum, testing
from bilevel.robustness import APGD, L2, Batch, CarliniWagner, Linf, Square, attack, batches
from bilevel.robustness.threats.bounds import Bounds
from bilevel.robustness.threats.losses import margin, targeted_cross_entropy
from tests.digits import EPS, trained
from tests.problems import LinearBox, image_game
from tests.robustness.attacks.linear import LinearClassifier, greys

FOLDER = Path(__file__).parents[3] / "applications" / "benchmarks"


def smallest_ball() -> Linf:
    """Of radius 0 and unclipped: the search goes on to the smallest perturbation."""
    threat = Linf(0.0, loss=margin)
    vars(threat)["clip"] = lambda delta: delta
    return threat


@pytest.fixture(scope="module")
def authors() -> ModuleType:
    """The benchmark, which holds the procedure that takes one image at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module("carlini_wagner")


@pytest.mark.parametrize("smallest", [True, False])
def test_every_image_goes_the_way_that_it_goes_alone(authors: ModuleType, smallest: bool) -> None:
    """To the smallest perturbation that the search finds or to the first, in double precision."""
    model, _, test = trained()
    some = next(batches(test.subset([2, 3, 4]), 3))  # for which τ shrinks more than once
    batch = Batch(some.x.double(), some.y)
    threat = smallest_ball() if smallest else Linf(1.0, loss=margin)
    together = attack(model.double(), threat, CarliniWagner(steps=40), batch).x
    alone = authors.one_by_one(model, batch, stop=threat.eps, steps=40)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    assert (model(together).argmax(1) != batch.y).all()


def test_no_perturbation_below_a_grey_level_is_searched_for(authors: ModuleType) -> None:
    """Of images next to the boundary: τ ends at 1/256."""
    model = LinearClassifier(torch.randn(1, 4, 4)).double()
    x = 0.5 + 1e-3 * torch.randn(4, 1, 4, 4, dtype=torch.float64)
    batch = Batch(x, model(x).argmax(1))
    found = attack(model, smallest_ball(), CarliniWagner(steps=40), batch).x
    torch.testing.assert_close(found, authors.one_by_one(model, batch, steps=40), rtol=0, atol=1e-9)


def test_any_point_within_the_radius_will_do() -> None:
    """Also one that τ, by then smaller, still punishes: no success of the authors' search.

    There is one for some of the images; for which depends on the classifier.
    """
    model, _, test = trained()
    model, solver, threat = model.double(), CarliniWagner(steps=40), smallest_ball()
    for some in batches(test.subset(range(8)), 1):
        batch = Batch(some.x.double(), some.y)
        smallest = attack(model, threat, solver, batch).x
        eps = 0.97 * (smallest - batch.x).abs().max().item()
        images = attack(model, Linf(eps, loss=margin), solver, batch).x
        inside = (images - batch.x).abs().max() < 0.999 * eps  # found there, not clipped to it
        if inside and model(images).argmax(1) != batch.y:
            return
    pytest.fail("no such point was found for any of them")


def test_it_breaks_what_the_authors_procedure_breaks(authors: ModuleType) -> None:
    model, _, test = trained()
    batch = next(batches(test, 40))
    images = attack(model, Linf(EPS, loss=margin), CarliniWagner(steps=5), batch).x
    broken = authors.is_broken(model, images, batch, EPS)
    alone = authors.one_by_one(model, batch, stop=EPS, steps=5)
    expected = authors.is_broken(model, alone, batch, EPS)
    assert 5 < expected.sum() < 35
    assert not (expected & ~broken).any()


def test_a_linear_classifier_is_broken_where_it_can_be() -> None:
    model, batch, eps = LinearClassifier(torch.randn(1, 4, 4)), greys(60), 0.1
    distance = model.distance(batch)
    images = attack(model, Linf(eps, loss=margin), CarliniWagner(), batch).x
    broken = model(images).argmax(1) != batch.y
    assert not broken[distance > eps].any()
    assert broken[distance < 0.85 * eps].all()  # τ shrinks by a tenth at a time
    assert ((distance > 0) & (distance < 0.85 * eps)).sum() > 10
    assert ((images - batch.x).abs() <= eps + 1e-6).all()


def test_an_image_that_is_wrong_already_is_left_as_it_is() -> None:
    model, batch = LinearClassifier(torch.randn(1, 4, 4)), greys(20)
    images = attack(model, Linf(0.1, loss=margin), CarliniWagner(steps=5), batch).x
    wrong = model.distance(batch) < 0
    assert torch.equal(images[wrong], batch.x[wrong])
    assert wrong.any()


def test_it_keeps_what_a_game_relies_on() -> None:
    leader, _, batch = image_game()
    testing.check_solver(CarliniWagner(steps=3), Linf(0.1, loss=margin), leader, batch)


def test_a_batch_without_images() -> None:
    leader, _, _ = image_game()
    nothing = Batch(torch.zeros(0, 1, 4, 4), torch.zeros(0).long())
    assert len(attack(leader.model, Linf(0.1, loss=margin), CarliniWagner(), nothing).x) == 0


def test_a_loss_of_one_sign_would_leave_every_image_as_it_is() -> None:
    leader, _, batch = image_game()
    for threat in (Linf(0.1), Linf(0.1, loss=targeted_cross_entropy)):
        with pytest.raises(BilevelError, match=r"given a cross entropy: .* give .*loss=margin"):
            CarliniWagner().solve(threat, leader, batch)


def test_so_would_one_of_ones_own() -> None:
    def smoothed(logits: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(logits, batch.y, reduction="none", label_smoothing=0.1)

    leader, _, batch = image_game()
    with pytest.warns(UserWarning, match=r"positive at all clean images: .* as margin is"):
        CarliniWagner(steps=2).solve(Linf(0.1, loss=smoothed), leader, batch)


def test_an_objective_of_ones_own_is_not_refused_for_a_loss_that_it_does_not_read() -> None:
    class Margin(Linf):
        def objective(self, leader: Any, y: Tensor, batch: Batch) -> Tensor:
            return margin(leader.model(self.perturbed(y, batch)), batch)

    leader, _, batch = image_game()
    batch = batch._replace(y=leader.eval().model(batch.x).argmax(1))  # else there is a warning
    expected, found = (
        CarliniWagner(steps=3).solve(follower, leader, batch).value
        for follower in (Linf(0.1, loss=margin), Margin(0.1))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("follower", [L2(0.1, loss=margin), LinearBox(0.1)], ids=["L2", "own"])
def test_threat_models_without_the_radius_of_the_linf_ball(follower: FollowerProblem) -> None:
    leader, _, batch = image_game()
    name = type(follower).__name__
    with pytest.raises(BilevelError, match=rf"was given {name}: .* ε of an L∞ ball.* give Linf"):
        CarliniWagner().solve(follower, leader, batch)


@pytest.mark.parametrize("solver", [APGD(), Square(2)], ids=lambda s: type(s).__name__)
def test_threat_models_without_a_radius(solver: Solver) -> None:
    leader, _, batch = image_game()
    with pytest.raises(BilevelError, match=r"given LinearBox: .* ε of a ball.* Linf, L2(, L1)? or"):
        solver.solve(LinearBox(0.1), leader, batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    batch = Batch(torch.rand(2, 1, 2, 2).to(dtype), torch.tensor([0, 1]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).to(dtype)
    with pytest.raises(BilevelError, match=f"images are {dtype}: .* give float32 images"):
        attack(model, Linf(0.1, loss=margin), CarliniWagner(), batch)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0), (0.0, torch.ones(8))], ids=str)
def test_other_data_than_images_are_refused(bounds: Bounds | None) -> None:
    """Clipped to [0, 1], none would be found within ε."""
    leader, _, batch = image_game()
    with pytest.raises(BilevelError, match=r"the bounds are .*attack other data with APGD"):
        CarliniWagner().solve(Linf(0.1, loss=margin, bounds=bounds), leader, batch)


class Fixed(Linf):
    """Of which half the pixels may change."""

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return super().project(y * (torch.arange(4) < 2), batch)


class Halved(Linf):
    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return batch.x + y / 2


class Darker(Linf):
    def clip(self, delta: Tensor) -> Tensor:
        return super().clip(delta).clamp(max=0)


@pytest.mark.parametrize(
    ("kind", "own"), [(Fixed, "project"), (Halved, "perturbed"), (Darker, "clip")]
)
def test_a_part_of_the_ball_is_refused(kind: type[Linf], own: str) -> None:
    """The search would find δ outside of it, whose projections break little."""
    leader, _, batch = image_game()
    with pytest.raises(BilevelError, match=f"{kind.__name__} has a {own} of its own: .* with APGD"):
        CarliniWagner().solve(kind(0.1, loss=margin), leader, batch)


def test_bad_arguments() -> None:
    with pytest.raises(BilevelError, match="steps is 0"):
        CarliniWagner(steps=0)


def test_gradients_of_some_of_the_images_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, record = [], Oracle.record
    monkeypatch.setattr(Oracle, "record", lambda *given: taken.append(1) or record(*given))
    model, batch = LinearClassifier(torch.randn(1, 4, 4)), greys(12)
    follower = Linf(0.1, loss=margin)
    solution = CarliniWagner(steps=5).solve(follower, ZeroSum(model, follower), batch)
    assert solution.evaluations == len(taken)


def test_a_ball_that_one_step_leaves() -> None:
    model, batch = LinearClassifier(torch.randn(1, 4, 4)), greys(2)
    with pytest.warns(UserWarning, match=r"ε is 0\.004: .* so that it is weak; attack with APGD"):
        attack(model, Linf(0.004, loss=margin), CarliniWagner(steps=2), batch)
