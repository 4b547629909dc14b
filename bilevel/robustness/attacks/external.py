"""Attacks of other packages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bilevel.robustness.attacks.attack import Attack, Kind
from bilevel.robustness.data.batches import Batch


class ExternalAttack(Attack):
    """An attack of another package, with the call of torchattacks.

    A resumed battery tells two of them apart by their names alone.

    Args:
        name: The name in reports.
        make: A function of the classifier that returns ``attack(images, labels) -> images``.
        kind: See :class:`Attack`.
        alone: Likewise.
        passes: Likewise.

    Example:
        >>> noise = lambda model: lambda images, labels: (images + 0.1).clamp(0, 1)
        >>> ExternalAttack("brighter", noise, kind="black-box")
        ExternalAttack('brighter')
    """

    def __init__(
        self,
        name: str,
        make: Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]],
        *,
        kind: Kind = "iterative",
        alone: bool = False,
        passes: float = 1.0,
    ) -> None:
        super().__init__(name, kind=kind, alone=alone, passes=passes)
        self.make = make

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """What the package's attack returns."""
        with torch.enable_grad():
            return self.make(model)(batch.x, batch.y).detach()
