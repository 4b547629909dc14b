"""The named attacks: the radius, the points and the seed that they are given."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import pgm
from bilevel.robustness import (
    APGD,
    About,
    Attacker,
    AttackSettings,
    Batch,
    CarliniWagner,
    Linf,
    RandomSampling,
    SolverAttack,
    Square,
    Trained,
    make_attacks,
)
from bilevel.robustness.attacks.attack import kind_of
from bilevel.robustness.threats.losses import margin
from tests.images import image_set


def only(name: str, settings: AttackSettings) -> SolverAttack:
    (made,) = make_attacks([name], settings)
    assert isinstance(made, SolverAttack)
    return made


def trained(method: str = "grad-l2l", eps: float = 0.1, **more: Any) -> Trained:
    about = About(method, "small-cnn", 1, 10, "digits", eps, 0, Attacker("two-layer", 4), **more)
    return Trained("it", about, nn.Flatten(), about.solver())


def test_random_points_are_drawn_from_the_whole_ball() -> None:
    """Not from the small one in which PGM starts."""
    made = only("random", AttackSettings(0.3, 10, points=7))
    assert isinstance(made.solver, RandomSampling)
    assert (made.solver.points, made.follower.start, made.follower.eps) == (7, 0.3, 0.3)
    assert (made.follower.loss, made.kind) == (margin, "black-box")


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("naive-l2l", "black-box"),
        ("grad-l2l", "one-step"),
        ("grad-only-l2l", "one-step"),
        ("two-step-l2l", "iterative"),
    ],
)
def test_the_kind_of_a_learned_attacker_is_what_it_uses(method: str, kind: str) -> None:
    """And to tell it of a fresh one draws nothing, which would change what comes after."""
    settings = AttackSettings(0.1, 10, trained=trained(method), fresh=method, train=image_set(4))
    before = torch.get_rng_state()
    made = make_attacks(["own", "fresh"], settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert [(one.name, one.kind, one.role) for one in made] == [
        (f"own {method}", kind, "learned"),
        (f"fresh {method}", kind, "learned"),
    ]


def test_one_step_of_pgm_is_one_step() -> None:
    settings = AttackSettings(0.2, 10)
    assert [only(name, settings).kind for name in ("pgm-1", "pgm-2")] == ["one-step", "iterative"]
    assert kind_of(APGD()) == "iterative"


def test_the_kind_of_an_attack_is_that_of_its_solver() -> None:
    threat = Linf(0.1, start=0.1, loss=margin)
    solvers = Square(10), RandomSampling(10), CarliniWagner(), pgm(0.1, 1)
    kinds = "black-box", "black-box", "iterative", "one-step"
    assert tuple(SolverAttack("it", threat, one).kind for one in solvers) == kinds
    assert SolverAttack("it", threat, solvers[0], kind="iterative").kind == "iterative"
    transferred = SolverAttack("it", threat, pgm(0.1, 9), surrogate=nn.Flatten())
    assert transferred.kind == "black-box"


@pytest.mark.parametrize("interpolation", [None, {"pairing": "next"}], ids=["ball", "AIT"])
def test_the_own_attacker_has_the_radius_of_the_evaluation(interpolation: dict | None) -> None:
    target = trained(interpolation=interpolation)
    assert only("own", AttackSettings(0.05, 10, trained=target)).follower.eps == 0.05


def test_the_own_attacker_is_not_asked_for_more_than_it_reaches() -> None:
    """Its steps are as long as in training; PGM's grow with ε, and FGSM would seem stronger."""
    assert make_attacks(["own"], AttackSettings(0.3, 10, trained=trained(eps=0.2))) == []


@pytest.mark.parametrize(
    ("method", "norm", "before", "eps"),
    [
        ("grad-l2l", "linf", 0.031, 8 / 255),
        ("two-step-l2l", "linf", 0.2, 0.4),
        ("grad-l2l", "l2", 0.1, 0.4),  # where a step may leave the ball, and is brought back
    ],
)
def test_up_to_there_it_attacks(method: str, norm: Any, before: float, eps: float) -> None:
    target = trained(method, before, norm=norm)
    made = only("own", AttackSettings(eps, 10, trained=target, norm=norm))
    images = Batch(torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1]))
    with torch.no_grad():
        for leaf in made.solver.parameters():
            leaf.fill_(1)  # as far as tanh goes
    moved = made.perturb(nn.Flatten(), images, 0) - images.x
    reached = made.follower.norm(moved)
    assert reached.min() > 0.98 * eps


@pytest.mark.parametrize(
    ("norm", "told", "eps"), [("linf", "Linf", 0.3), ("l2", "L2", 2.0), ("l1", "L1", 9.0)]
)
def test_autoattack_is_given_the_settings(
    monkeypatch: pytest.MonkeyPatch, norm: Any, told: str, eps: float
) -> None:
    given = {}

    class Package:
        """Stands in for the package, which takes seconds, and notes what it is given."""

        def __init__(self, model: nn.Module, **settings: Any) -> None:
            given.update(settings)
            self.apgd_targeted, self.fab = SimpleNamespace(), SimpleNamespace()

        def run_standard_evaluation(self, x: Tensor, y: Tensor, batch_size: int) -> tuple:
            return x + 1, y

    monkeypatch.setitem(sys.modules, "pyautoattack", SimpleNamespace(AutoAttack=Package))
    (made,) = make_attacks(["autoattack"], AttackSettings(eps, 10, norm=norm, seed=5))
    x = torch.zeros(2, 1, 1, 1)
    assert torch.equal(made.perturb(nn.Flatten(), Batch(x, torch.tensor([0, 1])), 0), x + 1)
    assert (given["norm"], given["eps"], given["seed"]) == (told, eps, 5)
