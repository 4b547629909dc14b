"""AutoAttack and its parts, from the package of its authors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.robustness.attacks.arsenal import Arsenal
from bilevel.robustness.attacks.attack import Attack, Kind
from bilevel.robustness.attacks.foreign import Foreign


def autoattack(
    name: str, parts: list[str] | None, kind: Kind, passes: float, arsenal: Arsenal
) -> list[Attack]:
    """AutoAttack's standard version, or some of its parts.

    The package aims at nine wrong classes, and APGD-T's loss reads four logits: with fewer classes
    there are fewer targets, and below four no APGD-T.

    Args:
        name: What a report calls it.
        parts: Names of the package; None for the standard version.
        kind: See :class:`Attack`.
        passes: Likewise.
        arsenal: ε, the number of classes and the seed.

    Returns:
        One attack; that the package is missing is told when it is used.
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
            judge = AutoAttack(
                model,
                attacks=parts,
                version="custom" if parts else "standard",
                device=images.device,
                eps=arsenal.eps,
                seed=arsenal.seed,
            )
            for targeted in (judge.apgd_targeted, judge.fab):
                targeted.n_target_classes = min(9, arsenal.classes - 1)
            if arsenal.classes < 4 and parts is None:
                judge.attacks_to_run.remove("apgd-t")
            adversarial: Tensor
            adversarial, _ = judge.run_standard_evaluation(images, labels, batch_size=len(images))
            return adversarial

        return run

    return [Foreign(name, make, kind=kind, passes=passes)]
