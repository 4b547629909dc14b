"""AutoAttack and its component attacks, from the package ``pyautoattack``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.robustness.attacks.attack import Attack, Kind
from bilevel.robustness.attacks.external import ExternalAttack
from bilevel.robustness.attacks.settings import AttackSettings


def autoattack(
    name: str, parts: list[str] | None, kind: Kind, passes: float, settings: AttackSettings
) -> list[Attack]:
    """AutoAttack's standard version, or some of its component attacks.

    The package attacks nine target classes, and the loss of APGD-T needs four logits. With fewer
    classes there are fewer targets, and with fewer than four no APGD-T.

    Args:
        name: The name in reports.
        parts: The package's names of the component attacks; None for the standard version.
        kind: See :class:`Attack`.
        passes: Likewise.
        settings: ε, the number of classes and the seed.

    Returns:
        One attack; a missing package is reported when the attack is run.
    """

    def make(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        try:
            from pyautoattack import AutoAttack
        except ImportError as error:
            raise BilevelError(
                f"{name} comes with the package pyautoattack, which cannot be imported ({error}): "
                'pip install "bilevel[attacks]"'
            ) from error

        def run(images: Tensor, labels: Tensor) -> Tensor:
            adversary = AutoAttack(
                model,
                attacks=parts,
                version="custom" if parts else "standard",
                device=images.device,
                eps=settings.eps,
                seed=settings.seed,
            )
            for targeted in (adversary.apgd_targeted, adversary.fab):
                targeted.n_target_classes = min(9, settings.classes - 1)
            if settings.classes < 4 and parts is None:
                adversary.attacks_to_run.remove("apgd-t")
            found: tuple[Tensor, Tensor] = adversary.run_standard_evaluation(
                images, labels, batch_size=len(images)
            )
            return found[0]

        return run

    return [ExternalAttack(name, make, kind=kind, passes=passes)]
