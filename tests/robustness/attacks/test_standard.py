"""The attacks by name: their solvers, losses and settings."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, Iterative, NonFiniteError
from bilevel.robustness import (
    EVALUATION_STEP,
    L2,
    NORMS,
    STANDARD,
    TRAINING_STEP,
    About,
    Attacker,
    AttackSettings,
    Batch,
    Battery,
    ImageSet,
    Perturbation,
    SolverAttack,
    Square,
    Targeted,
    Trained,
    attack,
    check_attack,
    make_attacks,
    standard_attacks,
)
from bilevel.robustness.attacks.fresh import FreshAttack
from bilevel.robustness.threats.losses import (
    cross_entropy,
    dlr,
    margin,
    targeted_dlr,
    targeted_margin,
)
from bilevel.updates import CNN, NormalizedGradient, SignGradient
from tests.images import image_set

EPS = 0.31


def trained(method: str = "plain", name: str = "target", **about: object) -> Trained:
    settings = {"model": "small-cnn", "channels": 1, "classes": 10, "dataset": "digits"}
    attacker = Attacker("two-layer", 4)
    what = About(method, **{**settings, **about}, epsilon=EPS, attacker=attacker)
    return Trained(name, what, what.classifier(), what.solver() if what.learned else None)


def attack_settings(**settings: object) -> AttackSettings:
    return AttackSettings(**{"eps": EPS, "classes": 10, **settings})


def only(name: str, **settings: object) -> SolverAttack:
    (made,) = make_attacks([name], attack_settings(**settings))
    assert isinstance(made, SolverAttack)
    return made


@pytest.mark.parametrize(
    ("name", "steps", "loss", "alone"),
    [
        ("pgm-20", 20, cross_entropy, True),
        ("pgm-7-margin", 7, margin, False),
        ("pgm-100-dlr", 100, dlr, False),
    ],
)
def test_pgm_as_the_paper_evaluates(name: str, steps: int, loss: object, alone: bool) -> None:
    made = only(name, restarts=5)
    assert isinstance(made.solver, Iterative)
    assert isinstance(made.solver.update, SignGradient)
    assert (made.solver.steps, made.tries, made.alone) == (steps, 5, alone)
    assert made.solver.update.step == pytest.approx(0.03)  # 0.003 for ε = 0.031
    assert (made.follower.eps, made.follower.start, made.follower.loss) == (EPS, 1e-4, loss)


@pytest.mark.parametrize(
    ("name", "loss", "tries"),
    [("apgd-ce", cross_entropy, 5), ("apgd-dlr", dlr, 5), ("apgd-t", targeted_dlr, 9)],
)
def test_apgd_starts_anywhere_in_the_ball(name: str, loss: object, tries: int) -> None:
    made = only(name, restarts=5)
    assert (made.follower.start, made.follower.loss, made.tries) == (EPS, loss, tries)


def test_square_is_the_papers_on_the_margin() -> None:
    made = only("square", queries=7)
    assert (made.name, made.kind, made.role, made.alone) == ("Square 7", "black-box", "", False)
    assert isinstance(made.solver, Square)
    assert (made.solver.queries, made.passes, made.follower.loss) == (7, 7, margin)


def test_square_costs_a_third_of_apgd_t_at_most() -> None:
    square, targeted = only("square"), only("apgd-t")
    assert square.passes <= targeted.passes / 3
    assert STANDARD.index("apgd-t") < STANDARD.index("square")


def test_the_default_battery_in_a_norm_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Square, which does not know it, so that every attack can give a figure."""

    class Scaled(Perturbation):
        """max |δ| ≤ ε / 2."""

        index = "s"

        def clip(self, delta: Tensor) -> Tensor:
            return delta.clamp(-self.eps / 2, self.eps / 2)

        def noise(self, like: Tensor) -> Tensor:
            return self.start / 2 * (2 * torch.rand_like(like) - 1)

        def norm(self, delta: Tensor) -> Tensor:
            return 2 * delta.abs().flatten(1).amax(1)

        def ascent(self, step: float) -> SignGradient:
            return SignGradient(step / 2)

    monkeypatch.setitem(NORMS, "scaled", Scaled)
    images = image_set(9)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    attacks = standard_attacks(0.2, 3, norm="scaled")
    assert [one.name for one in standard_attacks(0.2, 3)] == [*NAMES, "Square 300"]
    assert [one.name for one in attacks] == NAMES
    _, outcomes = Battery(attacks, eps=0.2, norm="scaled").run(model, images)
    assert not [outcome.problem for outcome in outcomes if outcome.problem]


NAMES = ["FGSM", "PGM-20", "PGM-20 margin", "APGD-CE", "APGD-T", "APGD-T 300 steps", "random 100"]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (2, ("APGD-margin", margin, 0)),
        (3, ("APGD-T", targeted_margin, 2)),
        (4, ("APGD-T", targeted_dlr, 3)),
    ],
)
def test_targets_of_few_classes(classes: int, expected: tuple) -> None:
    made = only("apgd-t", classes=classes)
    assert (made.name, made.follower.loss, made.targets) == expected


def test_what_sees_every_image_for_its_own_figure() -> None:
    target = trained("grad-l2l")
    settings = attack_settings(alone=("cw",), trained=target, surrogates={"it": target.model})
    made = make_attacks(["fgsm", "own", "transfer", "apgd-ce", "cw"], settings)
    assert [one.alone for one in made] == [True, True, True, True, False, True]


def test_the_own_attacker() -> None:
    assert make_attacks(["own"], attack_settings()) == []
    target = trained("two-step-l2l")
    made = only("own", trained=target)
    assert (made.name, made.solver) == ("own two-step-l2l", target.solver)


def test_an_attacker_that_is_missing_is_told_when_it_is_wanted() -> None:
    target = trained("grad-l2l")
    (made,) = make_attacks(
        ["own"], attack_settings(trained=Trained("it", target.about, target.model))
    )
    with pytest.raises(BilevelError, match=r"it was saved without its attacker.safetensors"):
        made.perturb(target.model, Batch(torch.rand(1, 1, 8, 8), torch.tensor([0])), 0)


def test_transfer_uses_the_gradients_of_the_surrogate() -> None:
    surrogate = trained(name="other")
    made = make_attacks(["transfer"], attack_settings(surrogates={"other": surrogate.model}))
    assert [one.name for one in made] == ["FGSM on other", "PGM-10 on other"]
    assert made[1].solver.steps == 10
    assert [one.solver.update.step for one in made] == pytest.approx([EPS, 0.07])
    batch = Batch(torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]))
    for one in made:
        assert one.kind == "black-box"
        expected = attack(surrogate.model, one.follower, one.solver, batch).x
        assert torch.equal(one.perturb(nn.Flatten(), batch, 0), expected)


class Ranked(nn.Module):
    """Logits 0, 1, 2, 3 times a weight, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(4.0) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_targets_are_the_likeliest_wrong_classes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    aims = []

    def spy(model: nn.Module, follower: object, solver: object, batch: Targeted) -> Targeted:
        aims.append(batch.target.tolist())
        return batch

    monkeypatch.setattr("bilevel.robustness.attacks.solver_attack.attack", spy)
    batch = Batch(torch.zeros(2, 1, 1, 1), torch.tensor([3, 2]))
    made = only("apgd-t", classes=4)
    for attempt in range(made.tries):
        made.perturb(Ranked(), batch, attempt)
    assert aims == [[2, 3], [1, 1], [0, 0]]


def test_a_fresh_attacker_learns_against_a_classifier_that_stands_still() -> None:
    torch.manual_seed(0)
    target = trained()
    with torch.no_grad():
        target.model.head.weight.mul_(20)  # an untrained classifier hardly reacts
    train = ImageSet(
        torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8),
        torch.arange(64) % 10,
        tuple(map(str, range(10))),
    )
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    (made,) = make_attacks(["fresh"], attack_settings(trained=target, train=train, fresh_steps=60))
    assert isinstance(made, FreshAttack)
    images = Batch(train.images.float() / 255, train.labels)
    gains = []
    for steps in (0, made.steps):
        made.steps = steps
        torch.manual_seed(0)
        made.prepare(target.model)
        with torch.no_grad():
            moved = made.perturb(target.model, images, 0)
            gains.append(cross_entropy(target.model.eval()(moved), images).mean().item())
    assert gains[1] > 1.05 * gains[0]
    assert all(torch.equal(v, before[name]) for name, v in target.model.state_dict().items())
    assert all(p.grad is None for p in target.model.parameters())


def test_in_l2_every_attack_is_in_the_ball_and_steps_along_the_gradient() -> None:
    target, train = trained("grad-l2l", norm="l2"), image_set(4)
    surrogates = {"other": target.model}
    settings = attack_settings(norm="l2", trained=target, train=train, surrogates=surrogates)
    steps = {}
    for made in make_attacks([*STANDARD, "fresh"], settings):
        assert isinstance(made, (SolverAttack, FreshAttack))
        assert isinstance(made.follower, L2)
        assert made.follower.eps == EPS
        solver = made.make() if isinstance(made, FreshAttack) else made.solver
        if isinstance(solver, Iterative) and isinstance(solver.update, CNN):
            assert solver.update.direction == "max-abs"
        elif isinstance(solver, Iterative):
            assert isinstance(solver.update, NormalizedGradient)
            steps[made.name] = solver.update.step / EPS
    assert steps == pytest.approx(
        {
            "FGSM": 1,
            "PGM-20": EVALUATION_STEP,
            "PGM-20 margin": EVALUATION_STEP,
            "FGSM on other": 1,
            "PGM-10 on other": TRAINING_STEP,
        }
    )


def test_the_attacker_of_another_norm_is_left_out() -> None:
    assert make_attacks(["own"], attack_settings(trained=trained("grad-l2l"), norm="l2")) == []


def test_a_fresh_attacker_does_not_learn_from_nan() -> None:
    """It would answer with NaN, and break nothing."""
    target, images = trained(), torch.zeros(8, 1, 8, 8).byte()
    torch.nn.init.constant_(target.model.head.bias, torch.nan)
    train = ImageSet(images, torch.arange(8), tuple(map(str, range(10))))
    (made,) = make_attacks(["fresh"], attack_settings(trained=target, train=train))
    with pytest.raises(NonFiniteError, match="answer is not finite"):
        made.prepare(target.model)


def test_every_standard_name_is_known() -> None:
    made = make_attacks(STANDARD, attack_settings(surrogates={"s": nn.Flatten()}))
    assert len({one.name for one in made}) == len(made) == len(STANDARD)  # own gives 0, transfer 2


def test_the_default_battery_needs_nothing_but_epsilon_and_the_classes() -> None:
    made = standard_attacks(0.1, 3, restarts=2, surrogates={"other": nn.Flatten()})
    expected = make_attacks(
        STANDARD, AttackSettings(0.1, 3, restarts=2, surrogates={"other": nn.Flatten()})
    )
    assert [one.settings for one in made] == [one.settings for one in expected]
    images = ImageSet(
        torch.randint(256, (9, 1, 2, 2), dtype=torch.uint8), torch.arange(9) % 3, ("a", "b", "c")
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    _, outcomes = Battery(standard_attacks(0.1, 3), eps=0.1).run(model, images)
    assert [outcome.problem for outcome in outcomes] == [""] * 8  # neither own nor transfer


@pytest.mark.parametrize(("classes", "parts"), [(10, 4), (5, 4), (3, 3), (2, 3)])
def test_autoattack_with_few_classes(classes: int, parts: int, caplog: Any) -> None:
    """It has nine targets, and one of its parts reads four logits."""
    pytest.importorskip("pyautoattack")
    images = ImageSet(
        torch.randint(256, (2 * classes, 1, 2, 2), dtype=torch.uint8),
        torch.arange(2 * classes) % classes,
        tuple(map(str, range(classes))),
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
    made = make_attacks(["autoattack"], AttackSettings(0.01, classes))
    with caplog.at_level("DEBUG"):
        _, (outcome,) = Battery(made, eps=0.01).run(model, images)
    assert not outcome.problem
    if outcome.attacked.any():
        (told,) = [line for line in caplog.messages if line.startswith("using standard version")]
        assert len(told.split(", ")) == parts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "epsilon is 0.0: .*0 < epsilon ≤ 1"),
        ({"eps": 8.0}, "epsilon is 8.0: .*8/255"),
        ({"restarts": 0}, "restarts is 0: .*give 1, 2"),
        ({"restarts": 2.5}, "restarts is 2.5: it must be a whole number"),
        ({"queries": 0}, "queries is 0: .*give 1, 2"),
        ({"classes": 1}, "classes is 1: .*2 or more"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        attack_settings(**settings)


@pytest.mark.parametrize("name", ["pgd-20", "pgm-0", "apgd", "pgm-20-ce", "AutoAttack"])
def test_no_attack_of_that_name(name: str) -> None:
    for refuse in (check_attack, only):
        with pytest.raises(BilevelError, match=f"no attack '{re.escape(name)}': "):
            refuse(name)


def test_a_fresh_attacker_must_be_a_learned_one() -> None:
    with pytest.raises(BilevelError, match="fresh is 'pgm', which learns nothing"):
        make_attacks(["fresh"], attack_settings(fresh="pgm"))
