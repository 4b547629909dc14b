"""Optimizers of ``torch.optim`` as updates."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError, raise_unknown
from bilevel.tree import Value, as_real, from_leaves, leaves, leaves_like
from bilevel.updates import functional
from bilevel.updates.base import State, Update, given

STEPS: dict[type[torch.optim.Optimizer], functional.Step] = {
    torch.optim.SGD: functional.sgd,
    torch.optim.Adam: functional.adam,
    torch.optim.AdamW: functional.adam,
    torch.optim.Adamax: functional.adamax,
    torch.optim.RMSprop: functional.rmsprop,
    torch.optim.Adagrad: functional.adagrad,
    torch.optim.Adadelta: functional.adadelta,
    torch.optim.ASGD: functional.asgd,
}


class Optimizer(Update):
    """A differentiable step of an optimizer of ``torch.optim``.

    The steps equal those of ``torch.optim`` up to rounding, and :class:`~bilevel.Unrolled`
    differentiates through their state too. For plain gradient steps,
    :class:`~bilevel.updates.Gradient` has less overhead.

    A tensor of y that the objective does not use has a zero gradient here, where ``torch.optim``
    sees None and skips it: weight decay shrinks it, and momentum moves it on.

    If Y is neither the whole space nor a box, projected steps that are scaled per coordinate (all
    but SGD's) do not converge to the optimum.

    The state is the optimizer's: a dict of tensors and numbers for each tensor of y.

    Args:
        optimizer: A class of ``torch.optim``.
        **settings: Its arguments: ``lr=0.1``.

    Attributes:
        settings: All of them, with the defaults of ``torch.optim``. They may be changed between
            solves: ``update.settings["lr"] *= 0.5``. No state dict has them: a run that is resumed
            sets them again.

    Raises:
        BilevelError: If there is no differentiable version of it, it has no such setting, or
            ``maximize`` is set.

    Example:
        >>> update = Optimizer(torch.optim.SGD, lr=0.5, momentum=0.9)
        >>> update
        Optimizer(SGD, lr=0.5, momentum=0.9)
        >>> y, state = update(torch.zeros(2), torch.tensor([2.0, -4.0]), None, None)
        >>> y
        tensor([ 1., -2.])
        >>> update(y, torch.zeros(2), None, state)[0]
        tensor([ 1.9000, -3.8000])
    """

    needs_context = False

    def __init__(self, optimizer: type[torch.optim.Optimizer], **settings: Any) -> None:
        super().__init__()
        if not isinstance(optimizer, type):
            raise BilevelError(
                f"optimizer is an object ({type(optimizer).__name__}): there are no parameters "
                "yet that it could move; give its class and settings, Optimizer(torch.optim.SGD, "
                "lr=0.1)"
            )
        if optimizer not in STEPS:
            raise BilevelError(
                f"{optimizer.__name__} cannot be unrolled: there is no correct differentiable "
                f"version of it; give one of {', '.join(kind.__name__ for kind in STEPS)}, or "
                "move y by it in a solver of your own and take the adjoint Implicit()"
            )
        if settings.get("maximize"):
            raise BilevelError(
                "maximize=True would make y worse: the gradient already has the sign of the "
                'follower\'s sense; leave it out, and set sense = "max" on the follower'
            )
        known = [*inspect.signature(optimizer).parameters][1:]  # without params
        for name in settings:
            if name not in known:
                raise_unknown(f"setting of {optimizer.__name__}", name, known)
        self.optimizer = optimizer
        self.settings = optimizer([torch.empty(0)], **settings).defaults

    @property
    def state_kind(self) -> str:
        """Adam and AdamW read the same."""
        return f"Optimizer({STEPS[self.optimizer].__name__})"

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Takes one step, with the negative gradient, since optimizers descend."""
        grads = leaves_like(given("gradient", gradient), like=y)
        states = ({},) * len(grads) if state is None else state
        step = STEPS[self.optimizer]
        stepped = [
            step(as_real(leaf), -as_real(grad), leaf_state, self.settings)
            for leaf, grad, leaf_state in zip(leaves(y), grads, states, strict=True)
        ]
        points, states = zip(*stepped, strict=True)
        moved = [
            torch.complex(*point.unbind(-1)) if leaf.is_complex() else point
            for point, leaf in zip(points, leaves(y), strict=True)
        ]
        return from_leaves(moved, like=y), states

    def extra_repr(self) -> str:
        """The optimizer and its settings, without the ones at default, as ``repr`` shows them."""
        parameters = inspect.signature(self.optimizer).parameters
        settings = [
            f"{name}={value!r}"
            for name, value in self.settings.items()
            if name in parameters
            and (isinstance(value, Tensor) or value != parameters[name].default)
        ]
        return ", ".join([self.optimizer.__name__, *settings])
