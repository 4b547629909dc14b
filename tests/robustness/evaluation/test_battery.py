"""`Battery`: the worst case, and the images that each attack is run on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bilevel import BilevelError, NonFiniteError, pgm
from bilevel.robustness import (
    L2,
    Attacker,
    Batch,
    Battery,
    ExternalAttack,
    FreshAttack,
    ImageSet,
    Linf,
    SolverAttack,
    make_solver,
)
from tests.robustness.evaluation.faults import Faulty
from tests.robustness.evaluation.scripted import COUNT, EPS, Scripted, Threshold, near, noisy


def test_the_worst_case_is_the_union_and_others_see_what_is_left(images: ImageSet) -> None:
    levels = sorted(near(images, EPS))
    one, two = Scripted("one", set(levels[:3])), Scripted("two", set(levels[2:5]))
    right, outcomes = Battery([one, two], eps=EPS).run(Threshold(), images)
    assert int(right.sum()) == COUNT - 3
    assert not set(two.seen[0]) & set(levels[:3])
    broken = outcomes[0].broken | outcomes[1].broken
    grey = images.images[:, 0, 0, 0]
    assert sorted(grey[broken].tolist()) == levels[:5]
    assert not (outcomes[0].broken & outcomes[1].broken).any()


def test_an_attack_alone_sees_every_image_that_is_right(images: ImageSet) -> None:
    levels = near(images, EPS)
    attacks = [Scripted("one", levels), Scripted("two", levels, alone=True)]
    right, outcomes = Battery(attacks, eps=EPS).run(Threshold(), images)
    assert torch.equal(outcomes[1].attacked, right)
    assert torch.equal(outcomes[0].broken, outcomes[1].broken)


def test_broken_images_leave_with_the_try_that_breaks_them(images: ImageSet) -> None:
    levels = near(images, EPS)
    attack = Scripted("one", levels, tries=3)
    _, outcomes = Battery([attack], eps=EPS).run(Threshold(), images)
    assert int(outcomes[0].broken.sum()) == len(levels)
    for attempt in (1, 2):
        gone = {level for level in levels if level % 3 < attempt}
        assert not gone & set(attack.seen[attempt])


class Drawing(Scripted):
    """Breaks nothing, and notes a random number for each batch."""

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        self.drawn = [*getattr(self, "drawn", []), torch.rand(()).item()]
        return batch.x


def drawn(images: ImageSet, seed: int) -> list[float]:
    attacks = [Drawing(name, set()) for name in ("one", "two")]
    Battery(attacks, eps=EPS, seed=seed, batch_size=10).run(Threshold(), images)
    return [number for attack in attacks for number in attack.drawn]


def test_the_seed_gives_each_attack_and_batch_random_numbers_of_its_own(images: ImageSet) -> None:
    first, second = drawn(images, seed=0), drawn(images, seed=1)
    assert len({*first, *second}) == len(first) + len(second) == 2 * 2 * 3
    assert drawn(images, seed=0) == first


@given(st.integers(1, 40))
def test_the_batch_size_changes_nothing_but_the_batches(batch_size: int) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (25, 1, 2, 2), dtype=torch.uint8)
    images = ImageSet(pixels, torch.randint(2, (25,)), ("a", "b"))
    attack = SolverAttack("PGM", Linf(0.1), pgm(0.02, 5))
    model, sizes = Threshold(), []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    _, (one,) = Battery([attack], eps=0.1, batch_size=batch_size).run(model, images)
    assert max(sizes) == min(batch_size, 25)
    _, (other,) = Battery([attack], eps=0.1, batch_size=1000).run(model, images)
    assert torch.equal(one.broken, other.broken)


def test_the_exact_answer_of_a_linear_classifier(images: ImageSet) -> None:
    """PGM carries the mean over the threshold exactly where ε suffices."""
    attack = SolverAttack("PGM", Linf(EPS), pgm(EPS, 2))
    right, outcomes = Battery([attack], eps=EPS).run(Threshold(), images)
    distance = (images.images[:, 0, 0, 0] / 255 - 0.5).abs()
    assert torch.equal(outcomes[0].broken, right & (distance < EPS))


@pytest.mark.parametrize("eps", [EPS, 1.0])
def test_the_exact_answer_in_l2(images: ImageSet, eps: float) -> None:
    """In an L2 ball the mean of four pixels moves by at most ε/2."""
    threat = L2(eps)
    attack = SolverAttack("PGM", threat, threat.pgm(eps, 2))
    right, (outcome,) = Battery([attack], eps=eps, norm="l2").run(Threshold(), images)
    distance = (images.images[:, 0, 0, 0] / 255 - 0.5).abs()
    assert not outcome.problem
    assert torch.equal(outcome.broken, right & (distance < eps / 2))


def test_nothing_is_prepared_for_no_image(images: ImageSet) -> None:
    nothing = images.subset([-1])  # labelled wrongly
    attack = Scripted("late", set())
    Battery([attack], eps=EPS).run(Threshold(), nothing)
    assert not attack.prepared


def test_an_attack_that_writes_into_its_batch_is_not_judged_by_it(images: ImageSet) -> None:
    def move(x: Tensor, y: Tensor) -> Tensor:
        return x.copy_(torch.rand_like(x))

    def relabel(x: Tensor, y: Tensor) -> Tensor:
        y.add_(1)
        return x

    attacks = [ExternalAttack("in place", lambda model, own=own: own) for own in (move, relabel)]
    _, (moved, relabelled) = Battery(attacks, eps=1e-3).run(Threshold(), images)
    assert "left the threat model" in moved.problem
    assert not relabelled.problem
    assert not (moved.broken | relabelled.broken).any()


def test_labels_that_are_no_classes(images: ImageSet) -> None:
    other = ImageSet(images.images, images.labels + 1, images.classes)
    with pytest.raises(BilevelError, match=r"labels run from 1 to 2, .* give 0 to 1"):
        Battery([], eps=EPS).run(Threshold(), other)


def test_an_image_set_without_images(images: ImageSet) -> None:
    with pytest.raises(BilevelError, match=r"image set is empty: .*give one image or more"):
        Battery([], eps=EPS).run(Threshold(), images.subset([]))


def test_logits_that_are_not_finite(images: ImageSet) -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Threshold()(x) * torch.nan

    with pytest.raises(NonFiniteError, match="logits are not finite"):
        Battery([], eps=EPS).run(Bad(), images)


def test_an_answer_of_nan_is_no_right_answer(images: ImageSet) -> None:
    class Fragile(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.flatten(1)[:, :1] == 0.25, torch.nan, super().forward(x))

    attack = ExternalAttack("quarter", lambda model: lambda x, y: x.clamp(0.25, 0.25))
    _, (outcome,) = Battery([attack], eps=1.0).run(Fragile(), images)
    assert torch.equal(outcome.broken, outcome.attacked)


def test_the_classifier_is_left_as_it_was(images: ImageSet) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), Threshold(), nn.Linear(2, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Battery(noisy(), eps=EPS).run(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_progress_ends_where_it_was_foreseen(images: ImageSet) -> None:
    told: list[tuple[float, float]] = []
    battery = Battery(noisy(), eps=EPS, batch_size=7, report=lambda _, *cost: told.append(cost))
    battery.run(Threshold(), images)
    assert all(done <= total for done, total in told)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_is_foreseen_is_what_each_attack_will_see(images: ImageSet) -> None:
    """All 27 images that are right, or those that are left: five break in the second batch."""
    levels = sorted(near(images, EPS))[:5]
    attacks = [
        Scripted("one", set(levels), passes=2.0),
        Scripted("two", set(), passes=3.0, alone=True),
        Scripted("three", set(), passes=5.0),
        Scripted("four", set(), passes=7.0, sample=6),
    ]
    told: list[tuple[str, float, float]] = []
    battery = Battery(attacks, eps=EPS, batch_size=9, report=lambda *cost: told.append(cost))
    battery.run(Threshold(), images)
    assert told[0] == ("one", 2 * 9, 2 * 27 + 3 * 27 + 5 * 27 + 7 * 6)
    assert told[2] == ("one", 2 * 27, 2 * 27 + 3 * 27 + 5 * 22 + 7 * 6)
    assert told[-1] == ("four", 287, 287)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_error_of_the_report_is_no_problem_of_the_attack(
    images: ImageSet, tmp_path: Path, batch: int
) -> None:
    """It ends the run, which goes on as if nothing had happened."""
    calls = 0

    def fails(name: str, done: float, total: float) -> None:
        nonlocal calls
        calls += 1
        if calls == batch:
            raise OSError("the terminal is gone")

    settings = {"eps": EPS, "batch_size": 10, "path": str(tmp_path / "battery.pt")}
    with pytest.raises(OSError, match="the terminal is gone"):
        Battery(noisy(), report=fails, **settings).run(Threshold(), images)
    _, resumed = Battery(noisy(), **settings).run(Threshold(), images, resume=True)
    _, straight = Battery(noisy(), eps=EPS, batch_size=10).run(Threshold(), images)
    assert [outcome.problem for outcome in resumed] == [""] * 3
    for one, other in zip(straight, resumed, strict=True):
        assert torch.equal(one.broken, other.broken)


def test_its_numbers_are_checked_before_a_run() -> None:
    with pytest.raises(BilevelError, match="seed is -1"):
        Battery([Scripted("one", set())], eps=EPS, seed=-1)
    with pytest.raises(BilevelError, match="batch_size is 0"):
        Battery([Scripted("one", set())], eps=EPS, batch_size=0)
    with pytest.raises(BilevelError, match=r"norm is 'L2': .* give one of 'linf', 'l2'"):
        Battery([Scripted("one", set())], eps=EPS, norm="L2")  # type: ignore[arg-type]


def test_the_callers_random_numbers_go_on(images: ImageSet) -> None:
    """Also where an attacker is drawn to be trained."""
    attacker = Attacker("two-layer", width=4)
    make = partial(make_solver, "grad-l2l", eps=EPS, channels=1, attacker=attacker)
    fresh = FreshAttack("fresh", Linf(EPS), make, images, steps=1)
    before = torch.get_rng_state()
    Battery([*noisy(), fresh], eps=EPS).run(Threshold(), images)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_what_a_random_classifier_gets_right() -> None:
    """Whatever the caller has drawn before."""
    random = Faulty(nn.Flatten(), lambda model, x: torch.rand_like(model(x)))
    found = []
    for caller, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(caller)
        images = ImageSet(torch.zeros(100, 1, 1, 2).byte(), torch.arange(100) % 2, ("a", "b"))
        found.append(Battery([], eps=EPS, seed=seed).run(random, images)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
