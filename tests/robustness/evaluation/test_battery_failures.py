"""`Battery` with attacks that fail, leave the ball or leave something behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, pgm
from bilevel.robustness import (
    Batch,
    Battery,
    Evaluation,
    ExternalAttack,
    ImageSet,
    Linf,
    SolverAttack,
)
from tests.robustness.evaluation.scripted import COUNT, EPS, Scripted, Threshold, near


def failing(error: Exception) -> Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]:
    def attack(x: Tensor, y: Tensor) -> Tensor:
        raise error

    return lambda model: attack


def test_an_attack_that_leaves_the_l2_ball_fails(images: ImageSet) -> None:
    """With a step that the L∞ ball of this radius allows."""
    attack = SolverAttack("PGM", Linf(EPS), pgm(EPS, 1))
    _, (outcome,) = Battery([attack], eps=EPS, norm="l2").run(Threshold(), images)
    assert "‖δ‖₂ = 0.4 where ε = 0.2" in outcome.problem


def far(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: (x + 0.5).clamp(0, 1)


def brighter(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: x + 0.19


def darker(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: x - 0.19


def nan(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: x * torch.nan


def wider(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: torch.cat([x, x], 3)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (failing(ValueError("no luck")), "ValueError: no luck"),
        (failing(BilevelError("a line")), "a line"),
        (far, "‖δ‖∞ = 0.5 where ε = 0.2"),
        (brighter, "0.088 outside [0, 1]"),
        (darker, "0.19 outside [0, 1]"),
        (nan, "left the threat model"),
        (wider, "measure with accuracy(model, images, follower, solver)"),
    ],
)
def test_an_attack_that_fails_says_why_and_the_others_go_on(
    images: ImageSet, make: Callable[..., object], problem: str
) -> None:
    good = Scripted("good", near(images, EPS))
    _, (bad, other) = Battery([ExternalAttack("bad", make), good], eps=EPS).run(Threshold(), images)
    assert problem in bad.problem
    assert not bad.broken.any()
    assert other.broken.any()
    assert not other.problem


def test_what_an_attack_broke_before_it_failed_stays_broken(images: ImageSet) -> None:
    """Also for the attacks after it, which see what is left."""
    levels = near(images, EPS)
    good, calls = Scripted("good", levels), []

    def flaky(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, y: Tensor) -> Tensor:
            calls.append(len(x))
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return good.perturb(model, Batch(x, y), 0)

        return run

    attacks = [ExternalAttack("flaky", flaky, alone=True), Scripted("next", set())]
    right, (bad, other) = Battery(attacks, eps=EPS, batch_size=10).run(Threshold(), images)
    grey = images.images[:, 0, 0, 0]
    twenty = torch.arange(COUNT) < 20
    assert torch.equal(
        bad.broken, right & twenty & torch.tensor([g in levels for g in grey.tolist()])
    )
    assert bad.broken.any()
    assert torch.equal(other.attacked, right & ~bad.broken)
    assert Evaluation("it", EPS, None, right, (bad, other)).alone(bad) is None


class Careless(Scripted):
    """Leaves the classifier in training mode, and raises if it is told to."""

    fails = False

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        model.train()
        if self.fails:
            raise RuntimeError
        return super().perturb(model, batch, attempt)


class Wary(Scripted):
    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        assert not model.training
        return super().perturb(model, batch, attempt)


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_attack_leaves_behind_is_not_for_the_next_one(
    images: ImageSet, fails: bool
) -> None:
    careless = Careless("careless", set())
    careless.fails = fails
    _, (_, wary) = Battery([careless, Wary("wary", set())], eps=EPS).run(Threshold(), images)
    assert not wary.problem
