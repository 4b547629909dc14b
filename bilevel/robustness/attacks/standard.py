"""The default battery, and batteries of attacks by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from bilevel.robustness.attacks.attack import Attack, check_alone
from bilevel.robustness.attacks.named import attacks_named
from bilevel.robustness.attacks.settings import AttackSettings
from bilevel.robustness.threats.norms import NORMS, Norm
from bilevel.robustness.threats.perturbation import L2, Linf

STANDARD = (
    "fgsm",
    "pgm-20",
    "own",
    "transfer",
    "pgm-20-margin",
    "apgd-ce",
    "apgd-t",
    "longer",
    "random",
    "square",
)
"""The default battery: cheap attacks first, gradient-based ones before the others, which find much
of what masked gradients hide; random points alone find little. Auto-PGD takes the place of PGM-100.
CW, as costly as the costliest, broke no survivor of ten classifiers."""


def standard_attacks(
    eps: float,
    classes: int,
    *,
    restarts: int = 1,
    surrogates: Mapping[str, nn.Module] | None = None,
    norm: Norm = "linf",
) -> list[Attack]:
    """The default battery for any classifier.

    Args:
        eps: ε of the threat model, in units of the pixel range.
        classes: Number of classes.
        restarts: Random starts of PGM and APGD.
        surrogates: Classifiers by name, for transfer attacks.
        norm: The norm of the threat model, ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
        The attacks of :data:`STANDARD`; without Square in a norm that it does not know.

    Example:
        >>> for attack in standard_attacks(eps=8 / 255, classes=10):
        ...     print(attack.name)
        FGSM
        PGM-20
        PGM-20 margin
        APGD-CE
        APGD-T
        APGD-T 300 steps
        random 100
        Square 300
    """
    settings = AttackSettings(
        eps, classes, restarts=restarts, surrogates=surrogates or {}, norm=norm
    )
    return make_attacks(STANDARD, settings)


def make_attacks(names: Sequence[str], settings: AttackSettings) -> list[Attack]:
    """Makes attacks by name.

    Args:
        names: Of fgsm, pgm-K, pgm-K-margin, pgm-K-dlr, apgd-ce, apgd-dlr, apgd-t, longer, cw,
            random, square, own, fresh, transfer and autoattack; :data:`STANDARD` is the default
            battery, of which Square is left out in a norm that it does not know.
        settings: Their settings.

    Returns:
        New attacks. A name may give none (``own`` for a classifier without an attacker) or several
        (``transfer``).

    Raises:
        BilevelError: If there is no attack of that name, or one that is run on a sample is to have
            an accuracy of its own.
    """
    if tuple(names) == STANDARD and not issubclass(NORMS[settings.norm], Linf | L2):
        names = [name for name in names if name != "square"]
    attacks = []
    for name in names:
        for attack in attacks_named(name, settings):
            attack.alone = attack.alone or name in settings.alone
            check_alone(attack)
            attacks.append(attack)
    return attacks
