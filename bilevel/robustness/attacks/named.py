"""The attacks behind the names that the command line takes.

fgsm                     one step of size ε
pgm-K                    K steps on the cross entropy, as the paper runs them (Sec. 4)
pgm-K-margin, pgm-K-dlr  the same on another loss
apgd-ce, apgd-dlr        Auto-PGD; with random restarts
apgd-t                   Auto-PGD toward each of the nine most likely wrong classes
longer                   apgd-t with three times the steps, on 100 images and for the most likely
                         class: a spot check whether it had steps enough
cw                       Carlini & Wagner, in L∞ only
random                   uniform points of the ball
square                   the Square Attack
own                      the attacker that was trained with the classifier
fresh                    a new attacker, trained against the finished classifier
transfer                 FGSM and PGM-10 on every surrogate
autoattack               from the package pyautoattack
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from bilevel.errors import BilevelError, raise_unknown
from bilevel.robustness.attacks.apgd import APGD
from bilevel.robustness.attacks.attack import Attack
from bilevel.robustness.attacks.autoattack import autoattack
from bilevel.robustness.attacks.carlini_wagner import CarliniWagner
from bilevel.robustness.attacks.learned import fresh, own
from bilevel.robustness.attacks.random_sampling import RandomSampling
from bilevel.robustness.attacks.settings import AttackSettings
from bilevel.robustness.attacks.solver_attack import SolverAttack
from bilevel.robustness.attacks.square import Square
from bilevel.robustness.methods import EVALUATION_STEP, TRAINING_STEP
from bilevel.robustness.threats.losses import (
    UNTARGETED,
    Loss,
    cross_entropy,
    dlr,
    margin,
    targeted_dlr,
    targeted_margin,
)

_PGM = re.compile(r"pgm-([1-9]\d*)(?:-(margin|dlr))?")


def check_attack(name: str) -> None:
    """Checks that there is an attack of that name.

    Args:
        name: A name.

    Raises:
        BilevelError: If there is none; the message suggests the closest name.

    Example:
        >>> check_attack("pgm-7-margin")
        >>> check_attack("apgdt")
        Traceback (most recent call last):
        bilevel.errors.BilevelError: there is no attack 'apgdt': did you mean apgd-t?
    """
    if not (name in _ATTACKS or _PGM.fullmatch(name)):
        raise_unknown("attack", name, [*_ATTACKS, "pgm-20", "pgm-100"])


def attacks_named(name: str, settings: AttackSettings) -> list[Attack]:
    """The attacks of one name.

    Args:
        name: A name that :func:`check_attack` accepts.
        settings: Their settings.

    Returns:
        None, one or several new attacks.

    Raises:
        BilevelError: If there is no attack of that name, or not in that norm.
    """
    check_attack(name)
    if match := _PGM.fullmatch(name):
        return [_pgm(int(match[1]), match[2] or "ce", settings)]
    return _ATTACKS[name](settings)


def _pgm(steps: int, loss: str, settings: AttackSettings) -> Attack:
    """PGM as in the paper's evaluation; on the cross entropy it has an accuracy of its own."""
    threat = settings.ball(start=settings.start, loss=UNTARGETED[loss])
    solver = threat.pgm(EVALUATION_STEP * settings.eps, steps)
    return SolverAttack(
        f"PGM-{steps}" + (f" {loss}" if loss != "ce" else ""),
        threat,
        solver,
        restarts=settings.restarts,
        keep_broken=loss != "ce",
        alone=loss == "ce",
        passes=3 * steps * settings.restarts,
    )


def _fgsm(settings: AttackSettings) -> list[Attack]:
    threat = settings.ball()
    solver = threat.pgm(settings.eps, 1)
    return [SolverAttack("FGSM", threat, solver, alone=True, passes=3)]


def _apgd(
    name: str,
    loss: Loss,
    settings: AttackSettings,
    *,
    targets: int = 0,
    steps: int = 100,
    sample: int | None = None,
) -> list[Attack]:
    return [
        SolverAttack(
            name,
            settings.ball(start=settings.eps, loss=loss),
            APGD(steps=steps),
            restarts=settings.restarts,
            targets=targets,
            keep_broken=True,
            passes=3 * (steps + 1) * (targets or settings.restarts),
            sample=sample,
        )
    ]


def _apgd_t(
    settings: AttackSettings, *, most: int = 9, steps: int = 100, sample: int | None = None
) -> list[Attack]:
    """Targeted, by the logits' ratio if there are the four classes that it needs."""
    name, loss, targets = "APGD-T", targeted_dlr, min(most, settings.classes - 1)
    if settings.classes == 3:
        loss = targeted_margin
    elif settings.classes < 3:
        name, loss, targets = "APGD-margin", margin, 0
    if sample is not None:
        name += f" {steps} steps"
    return _apgd(name, loss, settings, targets=targets, steps=steps, sample=sample)


def _cw(settings: AttackSettings) -> list[Attack]:
    if settings.norm != "linf":
        raise BilevelError(
            f"cw attacks in L∞, and norm is {settings.norm!r}: leave it out of the attacks, as the "
            "default battery does"
        )
    return [SolverAttack("CW", settings.ball(loss=margin), CarliniWagner(), passes=5000)]


def _random(settings: AttackSettings) -> list[Attack]:
    points = settings.points
    follower, solver = settings.ball(start=settings.eps, loss=margin), RandomSampling(points)
    return [SolverAttack(f"random {points}", follower, solver, passes=points)]


def _square(settings: AttackSettings) -> list[Attack]:
    follower, queries = settings.ball(loss=margin), settings.queries
    return [SolverAttack(f"Square {queries}", follower, Square(queries), passes=queries)]


def _transfer(settings: AttackSettings) -> list[Attack]:
    """FGSM and PGM-10 on each surrogate (Appendix C)."""
    eps, threat = settings.eps, settings.ball()
    solvers = {"FGSM": threat.pgm(eps, 1), "PGM-10": threat.pgm(TRAINING_STEP * eps, 10)}
    return [
        SolverAttack(
            f"{name} on {surrogate}",
            threat,
            solver,
            surrogate=model,
            alone=True,
            passes=30,
        )
        for surrogate, model in settings.surrogates.items()
        for name, solver in solvers.items()
    ]


_ATTACKS: dict[str, Callable[[AttackSettings], list[Attack]]] = {
    "fgsm": _fgsm,
    "apgd-ce": partial(_apgd, "APGD-CE", cross_entropy),
    "apgd-dlr": partial(_apgd, "APGD-DLR", dlr),
    "apgd-t": _apgd_t,
    "longer": partial(_apgd_t, most=1, steps=300, sample=100),
    "cw": _cw,
    "random": _random,
    "own": own,
    "fresh": fresh,
    "transfer": _transfer,
    "square": _square,
    "autoattack": autoattack,
}
