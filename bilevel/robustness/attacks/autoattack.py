"""AutoAttack, from the package ``pyautoattack``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.robustness.attacks.attack import Attack
from bilevel.robustness.attacks.external import ExternalAttack
from bilevel.robustness.attacks.settings import AttackSettings
from bilevel.robustness.threats.norms import Norm

_NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # as the package names them


def autoattack(settings: AttackSettings) -> list[Attack]:
    """AutoAttack's standard version.

    The package attacks nine target classes, and the loss of APGD-T needs four logits. With fewer
    classes there are fewer targets, and with fewer than four no APGD-T.

    Args:
        settings: ε and its norm, the number of classes and the seed.

    Returns:
        One attack; a missing package is reported when the attack is run.
    """
    return [ExternalAttack("AutoAttack", partial(_make, settings), passes=10000)]


def _make(settings: AttackSettings, model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise BilevelError(
            "AutoAttack comes with the package pyautoattack, which cannot be imported "
            f"({error}): pip install pyautoattack"
        ) from error

    def run(images: Tensor, labels: Tensor) -> Tensor:
        adversary = AutoAttack(
            model,
            norm=_NORMS[settings.norm],
            device=images.device,
            eps=settings.eps,
            seed=settings.seed,
        )
        for targeted in (adversary.apgd_targeted, adversary.fab):
            targeted.n_target_classes = min(9, settings.classes - 1)
        if settings.classes < 4:
            adversary.attacks_to_run.remove("apgd-t")
        found: tuple[Tensor, Tensor] = adversary.run_standard_evaluation(
            images, labels, batch_size=len(images)
        )
        return found[0]

    return run
