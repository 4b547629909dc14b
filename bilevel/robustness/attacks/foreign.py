"""Attacks that come from elsewhere: other packages' ones, and those that cannot be had."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.robustness.attacks.attack import Attack, Kind
from bilevel.robustness.data.batches import Batch


class Foreign(Attack):
    """Another package's attack, as long as it is called as torchattacks' are.

    Args:
        name: What a report calls it.
        make: Given the classifier, gives ``attack(images, labels) -> images``.
        kind: See :class:`Attack`.
        alone: Likewise.
        passes: Likewise.

    Example:
        >>> noise = lambda model: lambda images, labels: (images + 0.1).clamp(0, 1)
        >>> Foreign("brighter", noise, kind="black-box")
        Foreign('brighter')
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
        """What the package returns; it may ask for gradients of the classifier's parameters."""
        with torch.enable_grad():
            return self.make(model)(batch.x, batch.y).detach()


class Missing(Attack):
    """An attack that was asked for and cannot be made; a battery says so and goes on.

    Args:
        name: What a report calls it.
        reason: Why.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = reason

    def prepare(self, model: nn.Module) -> None:
        """Says why, as a :class:`BilevelError`."""
        raise BilevelError(self.reason)

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """The images as they are."""
        return batch.x
