"""`SolverAttack`: misclassified points on the way, role, settings, restarts and targets."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, Iterative, NonFiniteError, Oracle, Solver, fgsm, pgm
from bilevel.robustness import (
    APGD,
    L2,
    Attack,
    AttackSettings,
    Batch,
    Battery,
    CarliniWagner,
    ImageSet,
    Interpolation,
    Linf,
    Perturbation,
    RandomSampling,
    SolverAttack,
    Targeted,
    attack,
    make_attacks,
)
from bilevel.robustness.attacks.checks import check_threat, rounding
from bilevel.robustness.threats.losses import margin, targeted_dlr, targeted_margin
from bilevel.updates import CNN
from tests.images import image_set

EPS = 0.2


class Bright(nn.Module):
    """Class 1 only where the mean pixel lies between 0.55 and 0.65."""

    def forward(self, x: Tensor) -> Tensor:
        logit = 0.05 - (x.flatten(1).mean(1) - 0.6).abs()
        return torch.stack([torch.zeros_like(logit), logit], 1)


class Zeroth(nn.Module):
    """Class 0 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_tensor([1.0, 0.0]).expand(len(x), 2)


class Visits(Solver):
    """Looks at δ = 0, the given values and 0 again, and answers with the last."""

    def __init__(self, *values: float, leader_mode: Literal["eval", "train"] = "eval") -> None:
        super().__init__(leader_mode=leader_mode)
        self.values = values

    def answer(self, oracle: Oracle) -> Tensor:
        delta = oracle.init()
        for value in self.values:
            oracle.gain(delta + value)
        return delta


def greys() -> Batch:
    return Batch(
        torch.tensor([0.5, 0.3]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.zeros(2).long()
    )


def moved(solver: Solver, *, keep_broken: bool = True, **settings: nn.Module) -> list[float]:
    """How far the attack moves each of two images, of which the first can be broken."""
    batch = greys()
    attack = SolverAttack("it", Linf(EPS), solver, keep_broken=keep_broken, **settings)
    return (attack.perturb(Bright(), batch, 0) - batch.x).amax((1, 2, 3)).tolist()


def test_an_image_that_was_broken_on_the_way_stays_broken() -> None:
    """The first such point counts."""
    assert moved(Visits(0.02, 0.1, 0.12, 0.02)) == pytest.approx([0.1, 0])
    assert moved(Visits(0.02, 0.1, 0.12, 0.02), keep_broken=False) == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_takes_no_point_out_of_the_ball(dtype: torch.dtype) -> None:
    """A point at the edge counts in every precision, one that is clearly beyond it in none."""
    batch = Batch((0.9 * torch.rand(500, 1, 2, 2)).to(dtype), torch.ones(500).long())
    beyond = 0.031 + 3 * rounding(batch.x).max().item()
    for value, expected in ((0.031, batch.x + 0.031), (beyond, batch.x)):
        attack = SolverAttack("it", Linf(0.031), Visits(value), keep_broken=True)
        assert torch.equal(attack.perturb(Zeroth(), batch, 0), expected)


def test_rounding_grows_with_the_data() -> None:
    """Of scans around 3000 it is larger than of images; a point at the edge counts all the same."""
    batch = Batch(3000 + 0.9 * torch.rand(500, 1, 2, 2), torch.ones(500).long())
    for value, expected in ((0.031, batch.x + 0.031), (0.04, batch.x)):
        threat = Linf(0.031, bounds=(0.0, 4000.0))
        attack = SolverAttack("it", threat, Visits(value), keep_broken=True)
        assert torch.equal(attack.perturb(Zeroth(), batch, 0), expected)


def test_points_that_do_not_count() -> None:
    """Outside of the ball, in training mode, and those on a surrogate."""
    assert moved(Visits(0.3)) == [0, 0]
    assert moved(Visits(0.1, leader_mode="train")) == [0, 0]
    assert moved(Visits(0.1), keep_broken=False, surrogate=Bright()) == [0, 0]
    with pytest.raises(BilevelError, match=r"keep_broken and surrogate are given: .* leave out"):
        moved(Visits(0.1), surrogate=Bright())


def test_a_solver_that_goes_on_with_some_of_the_images() -> None:
    """Its images are no longer those of the batch, row by row."""
    images = image_set(12)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images.images[0].numel(), 3))
    solver = CarliniWagner(steps=5)
    attack = SolverAttack("CW", Linf(EPS, loss=margin), solver, keep_broken=True)
    _, (outcome,) = Battery([attack], eps=EPS).run(model, images)
    assert not outcome.problem


def test_a_scripted_classifier_cannot_be_watched() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    batch = Batch(torch.rand(3, 1, 2, 2), torch.zeros(3).long())
    found = SolverAttack("FGSM", Linf(EPS), fgsm(EPS), keep_broken=True).perturb(scripted, batch, 0)
    assert (found - batch.x).abs().max() > 0


def test_the_classifier_is_watched_no_longer_than_the_attack() -> None:
    model = Bright()
    SolverAttack("it", Linf(EPS), pgm(0.1, 2), keep_broken=True).perturb(model, greys(), 0)
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("solver", "follower", "role"),
    [
        (pgm(0.02, 20), Linf(EPS), "cross entropy"),
        (APGD(), Linf(EPS), "cross entropy"),
        (pgm(0.02, 20), Linf(EPS, loss=margin), ""),
        (Iterative(CNN(1, EPS, form="two-layer", width=4), 1), Linf(EPS), "learned"),
        (RandomSampling(9), Linf(EPS, start=EPS, loss=margin), "random sampling"),
        (RandomSampling(9), Linf(EPS, start=EPS), "random sampling"),
        (pgm(0.02, 20), Interpolation(EPS), ""),  # its objective is not the loss
    ],
)
def test_the_role_does_not_depend_on_the_name(solver: Solver, follower: Linf, role: str) -> None:
    assert SolverAttack("random PGM-20", follower, solver).role == role


def test_pgm_is_reported_as_the_field_does_and_auto_pgd_as_its_authors_do() -> None:
    made = make_attacks(("pgm-20", "pgm-20-margin", "apgd-ce", "apgd-t"), AttackSettings(EPS, 10))
    assert [attack.keep_broken for attack in made] == [False, True, True, True]
    assert len({attack.settings for attack in made}) == 4


def test_settings_tell_weights_apart() -> None:
    """Of a learned solver and of a surrogate, which look alike in words."""
    torch.manual_seed(0)
    attackers = [Iterative(CNN(1, EPS, form="two-layer", width=4), 1) for _ in range(2)]
    surrogates = [nn.Linear(2, 2) for _ in range(2)]
    made: list[Attack] = [SolverAttack("it", Linf(EPS), attacker) for attacker in attackers]
    made += [SolverAttack("it", Linf(EPS), fgsm(EPS), surrogate=other) for other in surrogates]
    assert len({attack.settings for attack in made}) == 4
    assert made[0].settings == SolverAttack("it", Linf(EPS), attackers[0]).settings


def test_inference_mode_is_told_to_be_the_trouble() -> None:
    with torch.inference_mode(), pytest.raises(BilevelError, match=r"use torch\.no_grad\(\)"):
        moved(pgm(0.1, 2))
    with torch.no_grad():
        assert moved(pgm(0.1, 2))[0] == pytest.approx(0.1)


def test_a_diverged_classifier_does_not_look_robust() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(model[1].bias, torch.nan)
    with pytest.raises(NonFiniteError, match="the loss is nan where the attack starts"):
        attack(model, Linf(EPS), pgm(0.1, 2), greys())
    assert len(attack(model, Linf(EPS), pgm(0.1, 2), Batch(*(t[:0] for t in greys()))).x) == 0


@pytest.mark.parametrize("solver", [pgm(0.1, 3), APGD()], ids=["pgm", "apgd"])
def test_restarts_that_all_start_at_the_image_are_told(solver: Solver) -> None:
    """Unless something else draws: the solver, or a start of one's own."""

    class Uniform(Linf):
        def init(self, batch: Batch) -> Tensor:
            return torch.rand_like(batch.x)

    told = r"restarts is 5 and Linf starts at the image: .* all tries .*give .*start=eps"
    with pytest.warns(UserWarning, match=told):
        SolverAttack("it", Linf(EPS), solver, restarts=5)
    SolverAttack("it", Linf(EPS), solver)
    SolverAttack("it", Linf(EPS, start=1e-4), solver, restarts=5)
    SolverAttack("it", Uniform(EPS), solver, restarts=5)
    SolverAttack("it", Linf(EPS), Visits(0.1), restarts=5)
    SolverAttack("it", Linf(EPS, loss=targeted_dlr), solver, restarts=5, targets=2)


@pytest.mark.parametrize("tries", [{"restarts": 0}, {"targets": -1}])
def test_an_attack_tries_at_least_once(tries: dict[str, int]) -> None:
    """Otherwise it would break nothing, and look like a robust classifier."""
    with pytest.raises(BilevelError, match=r"(restarts is 0|targets is -1): .* give "):
        SolverAttack("it", Linf(EPS), pgm(0.1, 2), **tries)


def test_a_kind_of_another_name() -> None:
    """The checklist would overlook the attack."""
    with pytest.raises(BilevelError, match=r"kind is 'blackbox': .*'black-box'"):
        SolverAttack("it", Linf(EPS), pgm(0.1, 2), kind="blackbox")


@pytest.mark.parametrize(
    "labels", [torch.zeros(2, 2, 2).long(), torch.zeros(2, 6).long(), torch.zeros(2)]
)
def test_misclassified_points_are_known_of_classes_only(labels: Tensor) -> None:
    """Not of the classes of pixels, of several classes, or of numbers."""
    follower = Linf(EPS, loss=lambda outputs, batch: outputs.sum(1))
    attack = SolverAttack("it", follower, pgm(0.1, 2), keep_broken=True)
    with pytest.raises(BilevelError, match=r"labels are .* or leave keep_broken out"):
        attack.perturb(Bright(), Batch(greys().x, labels), 0)


class Ranked(nn.Module):
    """The given logits, whatever the image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


def test_targets_are_the_likeliest_for_the_classifier_that_the_solver_runs_on() -> None:
    aims = []

    def loss(logits: Tensor, batch: Targeted) -> Tensor:
        aims.append(batch.target.tolist())
        return targeted_margin(logits, batch)

    target, surrogate = Ranked(3.0, 2.0, 1.0), Ranked(3.0, 1.0, 2.0)
    made = SolverAttack("it", Linf(EPS, loss=loss), pgm(EPS, 1), targets=1, surrogate=surrogate)
    made.perturb(target, greys(), 0)
    assert {*map(tuple, aims)} == {(2, 2)}


def test_looking_for_targets_leaves_statistics_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    made = SolverAttack("it", Linf(EPS, loss=targeted_margin), pgm(EPS, 1), targets=2)
    made.perturb(model, greys(), 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_targets_that_the_loss_does_not_read() -> None:
    with pytest.raises(BilevelError, match="the loss is cross_entropy, which no target changes"):
        SolverAttack("APGD-T", Linf(0.1), APGD(steps=3), targets=2)


@pytest.mark.parametrize(("targets", "problem"), [(4, ""), (5, "targets is 5"), (9, "targets=4")])
def test_as_many_targets_as_there_are_wrong_classes(targets: int, problem: str) -> None:
    pixels = image_set(20).images
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].numel(), 5))
    images = ImageSet(pixels, model(pixels / 255).argmax(1), tuple("abcde"))  # all right
    follower = Linf(EPS, start=EPS, loss=targeted_dlr)
    attack = SolverAttack("APGD-T", follower, APGD(steps=3), targets=targets)
    _, (outcome,) = Battery([attack], eps=EPS).run(model, images)
    assert problem in outcome.problem
    assert bool(problem) == bool(outcome.problem)


def test_a_ball_has_bounds() -> None:
    clean, threat = torch.full((2, 1, 1, 2), -1.0), Linf(0.5, bounds=(-1, 1))
    check_threat(clean, clean + 0.5, threat)
    with pytest.raises(BilevelError, match=r"where ε = 0.5, pixels 0.3 outside \[-1, 1\]"):
        check_threat(clean, clean - 0.3, threat)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1)])
def test_every_pixel_may_be_off_by_rounding(threat: Perturbation) -> None:
    clean = torch.full((2, 3, 64, 64), 0.5)
    edge = threat.eps / threat.norm(torch.ones_like(clean))[0].item()
    check_threat(clean, clean + edge + 0.9 * rounding(clean), threat)
    with pytest.raises(BilevelError, match=f"‖δ‖{threat.index} = .* where ε = 0.1"):
        check_threat(clean, clean + edge + 1.5 * rounding(clean), threat)


def test_a_norm_that_counts_pixels() -> None:
    class L0(Linf):
        def norm(self, delta: Tensor) -> Tensor:
            return (delta != 0).flatten(1).sum(1).float()

    clean, threat = torch.full((2, 1, 2, 2), 0.5), L0(1.0)
    one = torch.zeros_like(clean)
    one[:, 0, 0, 0] = 0.4
    check_threat(clean, clean + one + 0.9 * rounding(clean), threat)
    with pytest.raises(BilevelError, match="it left the threat model"):
        check_threat(clean, clean + one + 0.1, threat)
