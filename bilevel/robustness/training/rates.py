"""The learning rates of an optimizer's parameter groups in the course of a run."""

from __future__ import annotations

import torch

from bilevel.errors import BilevelError, describe


class LearningRates:
    """The learning rates that an optimizer was made with, to be scaled as a whole.

    Args:
        optimizer: The optimizer; a group's initial rate is kept as ``"initial_lr"``, the key of
            torch's schedulers, so that a second run begins with the same ones.

    Attributes:
        initial: A rate for each group of parameters.

    Raises:
        BilevelError: If it is no optimizer of ``torch.optim``.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> LearningRates(optimizer).scale(0.1)
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """

    def __init__(self, optimizer: object) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise BilevelError(
                f"leader_opt is {describe(optimizer)}: the recipe changes its learning rates in "
                "the course of a run; give an optimizer of torch.optim"
            )
        self._optimizer = optimizer
        groups = optimizer.param_groups
        self.initial = [group.setdefault("initial_lr", group["lr"]) for group in groups]

    def scale(self, factor: float) -> None:
        """Sets each group's rate to a multiple of its initial one.

        Args:
            factor: The multiple.
        """
        for group, initial in zip(self._optimizer.param_groups, self.initial, strict=True):
            group["lr"] = initial * factor
