"""Inner training by an optimizer of ``torch.optim``, as a step rule."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.tree import Value, grow, leaves, tree_map
from bilevel.updates.base import State, Update
from bilevel.updates.checks import given

# Of higher's others, those of AdamW and newer ones are missing, Adagrad's fails without a history
# and RMSprop's warns of wrong gradients; Rprop's step is the gradient's sign.
UNROLLED = ("SGD", "Adam", "Adadelta", "Adamax", "ASGD")


class Optimizer(Update):
    """Steps y as an optimizer of ``torch.optim`` steps parameters, differentiably.

    The arithmetic is that of ``higher``'s differentiable optimizers (Grefenstette et al., 2019),
    which :class:`~bilevel.Unrolled` differentiates through, moments included: SGD, Adam, RMSprop,
    Adagrad, Adadelta, Adamax, ASGD and Rprop. Plain gradient steps are
    :class:`~bilevel.updates.Gradient`'s, without its overhead.

    The state is the optimizer's, a dict of tensors and numbers for each tensor of y.

    Args:
        optimizer: A class of ``torch.optim``.
        **settings: Its arguments: ``lr=0.1``.

    Raises:
        BilevelError: If there is no differentiable version of it.

    Example:
        >>> update = Optimizer(torch.optim.SGD, lr=0.5, momentum=0.9)
        >>> y, state = update(torch.zeros(2), torch.tensor([2.0, -4.0]), None, None)
        >>> y
        tensor([ 1., -2.])
        >>> update(y, torch.zeros(2), None, state)[0]
        tensor([ 1.9000, -3.8000])
    """

    def __init__(self, optimizer: type[torch.optim.Optimizer], **settings: Any) -> None:
        super().__init__()
        if optimizer.__name__ not in UNROLLED:
            raise BilevelError(
                f"{optimizer.__name__} cannot be unrolled: there is no differentiable version of "
                f"it that is right; give one of {', '.join(UNROLLED)} (Adam has weight_decay), or "
                "train y by it in bilevel.Parametric and take the adjoint Implicit()"
            )
        self.optimizer = optimizer
        self.settings = settings
        self._stepper, self._count = self._differentiable(1), 1

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """One step; the gradient is turned, since optimizers descend."""
        slopes = leaves(tree_map(lambda _, leaf: -leaf, y, given("gradient", gradient)))
        if len(slopes) != self._count:
            self._stepper, self._count = self._differentiable(len(slopes)), len(slopes)
        memory = {} if state is None else {place: dict(part) for place, part in state.items()}
        self._stepper.state = [defaultdict(dict, memory)]
        # The gradients are known: what would be differentiated for them is a stand-in.
        loss = torch.zeros((), requires_grad=True)
        moved = self._stepper.step(loss, params=leaves(y), grad_callback=lambda _: slopes)
        return grow(moved, like=y), dict(self._stepper.state[0])

    def _differentiable(self, count: int) -> Any:
        """The differentiable version, for so many tensors of whatever shapes."""
        import higher

        stand_ins = [torch.empty(0) for _ in range(count)]
        optimizer = self.optimizer(stand_ins, **self.settings)
        return higher.optim.get_diff_optim(optimizer, stand_ins)

    def extra_repr(self) -> str:
        """The optimizer and its settings, as ``repr`` shows them."""
        settings = [f"{name}={value!r}" for name, value in self.settings.items()]
        return ", ".join([self.optimizer.__name__, *settings])
