"""Threat models whose y is not added to the image: what attacks return and are judged on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel import BilevelError, FollowerProblem, Iterative, ZeroSum, pgm
from bilevel.robustness import (
    APGD,
    L2,
    NORMS,
    Adversary,
    Batch,
    Battery,
    Interpolation,
    Linf,
    Perturbation,
    Recipe,
    SolverAttack,
    Splits,
    Threat,
    Trainer,
    accuracy,
    accuracy_by_epsilon,
    attack,
    correct,
)
from bilevel.robustness.threats.losses import Loss, cross_entropy, margin
from bilevel.updates import CoordinateRNN, NormalizedGradient
from tests.images import image_set


class Rotation(Threat):
    """A rotation and a shift in both directions, in units of their limits."""

    def init(self, batch: Batch) -> Tensor:
        return batch.x.new_zeros(len(batch.x), 3)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y.clamp(-1, 1)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        angle, right, down = (y * torch.tensor([0.5, 0.4, 0.4])).unbind(1)
        tall = batch.x.shape[2] / batch.x.shape[3]
        rows = (angle.cos(), -angle.sin() * tall, right), (angle.sin() / tall, angle.cos(), down)
        matrix = torch.stack([torch.stack(row, 1) for row in rows], 1)
        grid = F.affine_grid(matrix, list(batch.x.shape), align_corners=False)
        return F.grid_sample(batch.x, grid, align_corners=False).clamp(0, 1)


class Frequencies(Threat):
    """Coefficients of an orthonormal transform of δ: of the image's shape, but not added to it."""

    def init(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.x)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y.renorm(2, 0, 1.0)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        spectrum = torch.fft.fft2(y, norm="ortho")
        return (batch.x + spectrum.real - spectrum.imag).clamp(0, 1)


THREATS = pytest.mark.parametrize(
    ("threat", "solver"),
    [
        (Rotation(), pgm(0.2, 5)),
        (Frequencies(), Iterative(NormalizedGradient(0.4), 5)),
    ],
    ids=["rotation", "frequencies"],
)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@THREATS
def test_attacks_return_the_images_that_y_makes(threat: Threat, solver: bilevel.Solver) -> None:
    model, images = classifier(), image_set(40)
    batch = Batch(images.images / 255, images.labels)
    y = solver.solve(threat, ZeroSum(model, threat), batch).value
    expected = threat.perturbed(y, batch)
    assert not torch.equal(expected, batch.x)
    assert torch.equal(attack(model, threat, solver, batch).x, expected)
    assert torch.equal(Adversary(model, threat, solver)(*batch), expected)
    right = model(expected).argmax(1) == batch.y
    assert torch.equal(correct(model, images, threat, solver), right)
    assert accuracy(model, images, threat, solver) == pytest.approx(right.float().mean().item())
    clean, (outcome,) = Battery([SolverAttack("own", threat, solver)], eps=1.0).run(model, images)
    assert not outcome.problem
    assert torch.equal(outcome.broken, clean & ~right)


@THREATS
def test_a_game_under_the_threat_is_trained_and_validated(
    threat: Threat, solver: bilevel.Solver, tmp_path: Path
) -> None:
    leader = ZeroSum(classifier(), threat)
    attacker = Iterative(CoordinateRNN(scale=0.5), steps=2)
    game = bilevel.Bilevel(
        leader,
        threat,
        attacker,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.Adam(attacker.parameters()),
    )
    data = Splits(image_set(32), image_set(16), image_set(16))
    recipe = Recipe(epochs=1, batch_size=16, padding=0, flip=False)
    trainer = Trainer(
        game,
        data,
        recipe,
        seed=0,
        path=tmp_path / "checkpoint.pt",
        validation_attack=(threat, solver),
    )
    (record,) = trainer.fit().history
    told = accuracy(leader.model, data.validation, threat, solver)
    assert record["validation_robust"] == told


@THREATS
def test_it_passes_the_conformance_checks(threat: Threat, solver: bilevel.Solver) -> None:
    images = image_set(4)
    batch = Batch(images.images / 255, images.labels)
    bilevel.testing.check_follower(threat, ZeroSum(classifier(), threat), batch)


def test_bytes_are_refused_by_a_threat_of_ones_own() -> None:
    with pytest.raises(BilevelError, match=r"images lie in \[255, 255\]: .*pixels in \[0, 1\]"):
        Rotation().check(Batch(torch.full((1, 1, 4, 4), 255.0), torch.tensor([0])))


class Frame(Threat):
    """A frame around the image, which makes it the size that the classifier takes."""

    def init(self, batch: Batch) -> Tensor:
        return torch.rand(len(batch.x), 1, 8, 8)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y.clamp(0, 1)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return F.pad(batch.x, (2,) * 4) + y * F.pad(torch.zeros(4, 4), (2,) * 4, value=1.0)


def test_a_threat_that_changes_the_size_of_images() -> None:
    """The classifier, which does not take clean ones, is known by those where the attack starts."""
    images, solver = image_set(20), pgm(0.2, 5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    torch.manual_seed(1)
    adversarial = attack(model, Frame(), solver, Batch(images.images / 255, images.labels)).x
    torch.manual_seed(1)
    right = model(adversarial).argmax(1) == images.labels
    assert torch.equal(correct(model, images, Frame(), solver), right)
    with pytest.raises(BilevelError, match=r"output for 20 images is of shape \(20, 1\)"):
        correct(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), images, Frame(), solver)


def test_points_on_the_way_are_judged_only_where_delta_is_added() -> None:
    with pytest.raises(BilevelError, match=r"keep_broken is given for Rotation: .* leave it out"):
        SolverAttack("APGD", Rotation(), APGD(), keep_broken=True)


def test_a_follower_that_does_not_make_images() -> None:
    class Bare(FollowerProblem):
        sense = "max"

        def init(self, batch: Batch) -> Tensor:
            return torch.zeros_like(batch.x)

        def objective(self, leader: nn.Module, y: Tensor, batch: Batch) -> Tensor:
            return y.flatten(1).sum(1)

    with pytest.raises(BilevelError, match=r"Bare does not say which images .*Threat"):
        accuracy(classifier(), image_set(2), Bare(), pgm(0.1, 1))  # type: ignore[arg-type]


def test_settings_are_shown_in_full() -> None:
    class Patch(Linf):
        def __init__(self, eps: float, size: int) -> None:
            super().__init__(eps)
            self.size = size

    assert repr(Patch(0.1, 3)) == "Patch(eps=0.1, start=0.0, loss=cross_entropy, size=3)"
    assert repr(Rotation()) == "Rotation(loss=cross_entropy)"


@pytest.mark.parametrize("kind", [Linf, Interpolation])
def test_two_radii_are_shown_as_two(kind: type[Linf]) -> None:
    assert repr(kind(8 / 255)) != repr(kind(0.03137251))


def test_images_and_labels_that_an_attack_would_silently_misread() -> None:
    images = image_set(2)
    x, y = images.images / 255, images.labels
    for bad, message in (
        ((x, y), r"the batch is .* give robustness.Batch"),
        (Batch(x * 255, y), r"images lie in .*pixels in \[0, 1\]"),
        (Batch(images.images, y), r"images are torch.uint8 .* divided by 255"),
        (Batch(x, y.int()), r"labels are torch.int32 .* give int64"),
        (Batch(x, F.one_hot(y, 3).float()), r"labels are torch.float32 of shape \(2, 3\)"),
        (Batch(x, x[:, 0].long()), r"labels are torch.int64 of .* or a loss of your own"),
        (Batch(x, [{}, {}]), r"labels are a list: each image has one class"),  # type: ignore[arg-type]
        (Batch(x, torch.tensor([1, -100])), r"labels are negative, .* leave them out"),
    ):
        with pytest.raises(BilevelError, match=message):
            attack(classifier(), Linf(0.1), pgm(0.1, 1), bad)


class Weighted:
    """A loss that is an object, whose own ``repr`` has its address."""

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        return margin(logits, batch)


@pytest.mark.parametrize("make", [Weighted, lambda: partial(cross_entropy)])
def test_the_same_settings_read_the_same_in_another_process(make: Callable[[], Loss]) -> None:
    """A battery or a training run that is resumed knows its threat model by them."""
    kept = make(), make()  # at two addresses
    one, other = (repr(Linf(0.1, loss=loss)) for loss in kept)
    assert one == other
    assert repr(Linf(0.1, loss=margin)) != one


@pytest.mark.parametrize("threat", [Linf(0.3), L2(0.3)], ids=repr)
def test_normalised_images_are_refused_in_training_too(threat: Threat) -> None:
    """Their perturbations would be clipped to [0, 1], far outside the ball."""
    leader = ZeroSum(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), threat)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = bilevel.Bilevel(leader, threat, pgm(0.1, 2), leader_opt=optimizer)
    with pytest.raises(BilevelError, match=r"images lie in .* normalise inside the classifier"):
        game.step(Batch(torch.randn(4, 1, 4, 4), torch.arange(4) % 2))


class Signals(Threat):
    """‖δ‖∞ ≤ 0.1 for signals (B, C, T) of any range."""

    def check(self, batch: Batch) -> None:
        assert batch.x.dim() == 3

    def init(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.x)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y.clamp(-0.1, 0.1)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return batch.x + y


def test_data_that_are_no_images_are_trained_on_and_attacked() -> None:
    signals = Batch(5 * torch.randn(6, 2, 9), torch.arange(6) % 2)
    model, threat = nn.Sequential(nn.Flatten(), nn.Linear(18, 2)), Signals()
    leader = ZeroSum(model, threat)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    bilevel.Bilevel(leader, threat, pgm(0.1, 2), leader_opt=optimizer).step(signals)
    moved = attack(model, threat, pgm(0.1, 1), signals).x - signals.x
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.1))


class L1(Perturbation):
    """‖δ‖₁ ≤ ε: only the largest change is kept."""

    index = "₁"

    def clip(self, delta: Tensor) -> Tensor:
        largest = delta.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        return (delta * (delta.abs() == largest)).clamp(-self.eps, self.eps)

    def noise(self, like: Tensor) -> Tensor:
        return self.clip(torch.randn_like(like))

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).sum(1)

    def ascent(self, step: float) -> NormalizedGradient:
        return NormalizedGradient(step)


class Unclipped(L1):
    def clip(self, delta: Tensor) -> Tensor:
        return delta


def test_a_ball_in_a_norm_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The battery knows it by its name, and finds an attack that leaves it."""
    monkeypatch.setitem(NORMS, "l1", L1)
    images = image_set(20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images.images[0].numel(), len(images.classes)))
    attacks = [
        SolverAttack(name, ball, L1(0.5).pgm(0.5, 3))
        for name, ball in (("PGM", L1(0.5)), ("broken", Unclipped(0.5)))
    ]
    _, (inside, outside) = Battery(attacks, eps=0.5, norm="l1").run(model, images)
    assert not inside.problem
    assert "left the threat model (‖δ‖₁ = " in outside.problem
    assert len(accuracy_by_epsilon(model, images, 0.5, norm="l1").at) > 2


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (F.mse_loss, "mse_loss"),
        (nn.CrossEntropyLoss(), "a CrossEntropyLoss"),
        (partial(F.cross_entropy, reduction="none"), "a partial"),
        (lambda output: output.sum(1), "<lambda>"),
        (0.5, "a float"),
    ],
    ids=["function", "module", "partial", "of one argument", "number"],
)
def test_a_loss_that_is_called_otherwise_is_refused(loss: Any, name: str) -> None:
    with pytest.raises(BilevelError, match=rf"loss is {name}: it is called as loss\(output, batch"):
        Linf(0.1, loss=loss)


@pytest.mark.parametrize("loss", [bilevel.robustness.dlr, torch.add, lambda *both: both[0].sum(1)])
def test_a_loss_may_be_any_function_of_two(loss: Any) -> None:
    assert Linf(0.1, loss=loss).loss is loss
