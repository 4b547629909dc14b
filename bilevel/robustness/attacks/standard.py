"""The attacks by name, as a command line asks for them.

fgsm                     one step of size ε
pgm-K                    K steps on the cross entropy, as the paper runs them (Sec. 4)
pgm-K-margin, pgm-K-dlr  the same on another loss
apgd-ce, apgd-dlr        Auto-PGD; with random restarts
apgd-t                   Auto-PGD toward each of the nine likeliest wrong classes
cw                       Carlini & Wagner in the L∞ norm
random                   uniform points of the ball
own                      the attacker that was trained with the classifier
fresh                    one trained against it now
transfer                 FGSM and PGM-10 on every surrogate
autoattack, square       of the package pyautoattack
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from bilevel import fgsm, pgm
from bilevel.errors import BilevelError
from bilevel.robustness.attacks.apgd import APGD
from bilevel.robustness.attacks.arsenal import Arsenal
from bilevel.robustness.attacks.attack import Attack, Foreign, Kind, Missing, Solved
from bilevel.robustness.attacks.carlini_wagner import CarliniWagner
from bilevel.robustness.attacks.fresh import Fresh
from bilevel.robustness.attacks.random_search import RandomSearch
from bilevel.robustness.losses import LOSSES, Loss, cross_entropy, dlr, margin, targeted_dlr
from bilevel.robustness.methods import EVALUATION_STEP, TRAINING_STEP, is_learned, make_solver
from bilevel.robustness.threats import Linf

STANDARD = (
    "fgsm",
    "pgm-20",
    "own",
    "transfer",
    "pgm-20-margin",
    "apgd-ce",
    "apgd-t",
    "random",
)
"""The default battery, cheap attacks first; what needs gradients before what needs none. Auto-PGD
stands for PGM-100, which takes as many steps and adapts none. CW takes as long as the longest of
them, and broke nothing that they had left of ten classifiers."""

_PGM = re.compile(r"pgm-([1-9]\d*)(?:-(margin|dlr))?")


def make_attacks(names: Sequence[str], arsenal: Arsenal) -> list[Attack]:
    """The attacks of those names.

    Args:
        names: See the module; :data:`STANDARD` is the default battery.
        arsenal: What they are made of.

    Returns:
        New attacks. A name may give none (``own`` where the classifier has no attacker) or several
        (``transfer``).

    Raises:
        BilevelError: If there is no attack of that name.
    """
    attacks = []
    for name in names:
        for attack in _make(name, arsenal):
            attack.alone = attack.alone or name in arsenal.alone
            attacks.append(attack)
    return attacks


def check_attack(name: str) -> None:
    """Says which name was meant if there is no such attack.

    Args:
        name: A name.

    Raises:
        BilevelError: If no attack has that name.

    Example:
        >>> check_attack("pgm-7-margin")
        >>> check_attack("apgdt")
        Traceback (most recent call last):
        bilevel.errors.BilevelError: there is no attack 'apgdt': did you mean apgd-t?
    """
    if name in _ATTACKS or _PGM.fullmatch(name):
        return
    near = difflib.get_close_matches(name, [*_ATTACKS, "pgm-20", "pgm-100"], n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(_ATTACKS)}, pgm-K"
    raise BilevelError(f"there is no attack {name!r}: {hint}")


def _make(name: str, arsenal: Arsenal) -> list[Attack]:
    check_attack(name)
    if match := _PGM.fullmatch(name):
        return [_pgm(int(match[1]), match[2] or "ce", arsenal)]
    return _ATTACKS[name](arsenal)


def _pgm(steps: int, loss: str, arsenal: Arsenal) -> Attack:
    """As the paper evaluates; its own figure is quoted, so it sees all images."""
    return Solved(
        f"PGM-{steps}" + (f" {loss}" if loss != "ce" else ""),
        arsenal.ball(LOSSES[loss], start=arsenal.start),
        pgm(EVALUATION_STEP * arsenal.eps, steps),
        restarts=arsenal.restarts,
        alone=loss == "ce",
        passes=3 * steps * arsenal.restarts,
    )


def _fgsm(arsenal: Arsenal) -> list[Attack]:
    solver = fgsm(arsenal.eps)
    return [Solved("FGSM", Linf(arsenal.eps), solver, kind="one-step", alone=True, passes=3)]


def _apgd(name: str, loss: Loss, arsenal: Arsenal, targets: int = 0) -> list[Attack]:
    return [
        Solved(
            name,
            arsenal.ball(loss),
            APGD(arsenal.eps),
            restarts=arsenal.restarts,
            targets=targets,
            passes=303 * (targets or arsenal.restarts),
        )
    ]


def _apgd_t(arsenal: Arsenal) -> list[Attack]:
    """Toward a class where there are enough of them for the ratio, else on the margin."""
    classes = arsenal.target.about.classes
    if classes < 4:
        return _apgd("APGD-margin", margin, arsenal)
    return _apgd("APGD-T", targeted_dlr, arsenal, targets=min(9, classes - 1))


def _cw(arsenal: Arsenal) -> list[Attack]:
    follower, solver = Linf(arsenal.eps, loss=margin), CarliniWagner(arsenal.eps)
    return [Solved("CW", follower, solver, passes=5000)]


def _random(arsenal: Arsenal) -> list[Attack]:
    return [
        Solved(
            f"random {arsenal.points}",
            arsenal.ball(margin),
            RandomSearch(arsenal.points),
            kind="black-box",
            passes=arsenal.points,
        )
    ]


def _own(arsenal: Arsenal) -> list[Attack]:
    target = arsenal.target
    if not target.about.learned:
        return []
    name = f"own {target.about.method}"
    if target.solver is None:
        return [Missing(name, f"{target.name} was saved without its attacker.safetensors")]
    follower = target.about.follower(arsenal.eps)
    return [Solved(name, follower, target.solver, alone=True, passes=30)]


def _fresh(arsenal: Arsenal) -> list[Attack]:
    about, method, train = arsenal.target.about, arsenal.fresh, arsenal.train
    if not is_learned(method):
        raise BilevelError(f"fresh is {method!r}, which learns nothing: name a method with l2l")
    if train is None:
        return [Missing(f"fresh {method}", "there are no images to train it on")]
    make = partial(
        make_solver,
        method,
        eps=arsenal.eps,
        channels=about.channels,
        attacker=about.attacker,
    )
    follower, steps = Linf(arsenal.eps), arsenal.fresh_steps
    return [Fresh(f"fresh {method}", follower, make, train, steps=steps, passes=30)]


def _transfer(arsenal: Arsenal) -> list[Attack]:
    """FGSM and PGM-10 on each surrogate (Appendix C)."""
    eps = arsenal.eps
    solvers = {"FGSM": fgsm(eps), "PGM-10": pgm(TRAINING_STEP * eps, 10)}
    return [
        Solved(
            f"{name} on {surrogate.name}",
            Linf(eps),
            solver,
            surrogate=surrogate.model,
            kind="black-box",
            alone=True,
            passes=30,
        )
        for surrogate in arsenal.surrogates
        for name, solver in solvers.items()
    ]


def _square(arsenal: Arsenal) -> list[Attack]:
    return [_package("Square", ["square"], arsenal, kind="black-box", passes=5000)]


def _autoattack(arsenal: Arsenal) -> list[Attack]:
    return [_package("AutoAttack", None, arsenal, kind="iterative", passes=10000)]


def _package(
    name: str, parts: list[str] | None, arsenal: Arsenal, *, kind: Kind, passes: float
) -> Attack:
    """AutoAttack's standard version, or some of its parts, from the package of its authors."""

    def make(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        try:
            from pyautoattack import AutoAttack
        except ImportError as error:
            raise BilevelError(
                f"{name} comes with the package pyautoattack, which cannot be imported ({error}): "
                'pip install "bilevel[attacks]"'
            ) from error

        def run(images: Tensor, labels: Tensor) -> Tensor:
            judge = AutoAttack(
                model,
                attacks=parts,
                version="custom" if parts else "standard",
                device=images.device,
                eps=arsenal.eps,
                seed=arsenal.seed,
            )
            adversarial: Tensor
            adversarial, _ = judge.run_standard_evaluation(images, labels, batch_size=len(images))
            return adversarial

        return run

    return Foreign(name, make, kind=kind, passes=passes)


_ATTACKS: dict[str, Callable[[Arsenal], list[Attack]]] = {
    "fgsm": _fgsm,
    "apgd-ce": partial(_apgd, "APGD-CE", cross_entropy),
    "apgd-dlr": partial(_apgd, "APGD-DLR", dlr),
    "apgd-t": _apgd_t,
    "cw": _cw,
    "random": _random,
    "own": _own,
    "fresh": _fresh,
    "transfer": _transfer,
    "autoattack": _autoattack,
    "square": _square,
}
