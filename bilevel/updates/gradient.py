"""Hand-designed updates: steps along the gradient, without parameters.

They differ in the direction d(g) of the step ``y' = y + step · d(g)``; :class:`Momentum` changes
the gradient that another update gets:

    PGM, L∞  = Iterative(SignGradient(step), steps)
    PGM, L2  = Iterative(NormalizedGradient(step), steps)
    MI-FGSM  = Iterative(Momentum(SignGradient(step), 1.0, normalize=True), steps)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor

from bilevel.arguments import instance_of, positive
from bilevel.errors import BilevelError
from bilevel.tree import Value, tree_map
from bilevel.updates.base import State, Update, given
from bilevel.updates.normalize import unit_norm


class _Step(Update):
    """``y' = y + step · direction(gradient)``."""

    needs_context = False

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = positive("step", step)

    @abstractmethod
    def direction(self, gradient: Value) -> Value:
        """The direction of the step, in the shape of the gradient."""

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        direction = self.direction(given("gradient", gradient))
        return tree_map(partial(torch.add, alpha=self.step), y, direction), state

    def extra_repr(self) -> str:
        return f"step={self.step}"


class Gradient(_Step):
    """Gradient ascent: ``y' = y + step · g``.

    Args:
        step: η > 0, in units of y² per unit of the objective.

    Raises:
        BilevelError: If ``step`` is not positive and finite.

    Example:
        >>> Gradient(0.5)(torch.zeros(1, 2), torch.tensor([[2.0, -4.0]]), None, None)
        (tensor([[ 1., -2.]]), None)
    """

    def direction(self, gradient: Value) -> Value:
        """The gradient itself."""
        return gradient


class SignGradient(_Step):
    """The step of FGSM and PGM, eq. 4: ``y' = y + step · sign(g)``.

    The steepest ascent of a linear function in the L∞ norm.

    Args:
        step: η > 0, in units of y (0.007 in the paper's training, for pixels in [0, 1]).

    Raises:
        BilevelError: If ``step`` is not positive and finite; in the call, if y is complex.

    Example:
        >>> SignGradient(0.5)(torch.zeros(1, 3), torch.tensor([[2.0, -4.0, 0.0]]), None, None)
        (tensor([[ 0.5000, -0.5000,  0.0000]]), None)
    """

    differentiable = False

    def direction(self, gradient: Value) -> Value:
        """+1, -1 or 0, as the gradient's sign."""
        return tree_map(_sign, gradient)


class NormalizedGradient(_Step):
    """A step of constant length: ``y' = y + step · g / ‖g‖₂``, for each sample.

    The steepest ascent of a linear function in the L2 norm. If the gradient is zero, y stays. A y
    shared by the batch must be a dict: the rows of a tensor are samples (:func:`unit_norm
    <bilevel.updates.unit_norm>`).

    Args:
        step: η > 0, the Euclidean length of the step, in units of y.

    Raises:
        BilevelError: If ``step`` is not positive and finite.

    Example:
        >>> NormalizedGradient(5.0)(torch.zeros(1, 2), torch.tensor([[0.3, -0.4]]), None, None)
        (tensor([[ 3., -4.]]), None)
    """

    def direction(self, gradient: Value) -> Value:
        """The gradient with Euclidean norm 1, see :func:`~bilevel.updates.unit_norm`."""
        return unit_norm(gradient, 2)


class Momentum(Update):
    """Replaces the gradient of another update by its momentum: ``m ← decay · m + g``.

    With ``normalize`` it is ``m ← decay · m + g / ‖g‖₁`` and, around :class:`SignGradient` with
    decay 1, the attack MI-FGSM of Dong et al., "Boosting Adversarial Attacks with Momentum",
    CVPR 2018, eq. 6 and 7.

    The state is ``(m, state of the other update)``.

    Args:
        update: The update that gets m instead of the gradient.
        decay: μ ≥ 0, the factor of m from one step to the next.
        normalize: Whether each sample's gradient is first divided by its L1 norm, so that all steps
            have the same weight; a dict's by that of all its tensors.

    Raises:
        BilevelError: If ``decay`` is negative or not finite.

    Example:
        >>> update = Momentum(Gradient(1.0), 0.5)
        >>> y, state = update(torch.zeros(1, 1), torch.ones(1, 1), None, None)
        >>> update(y, torch.ones(1, 1), None, state)[0]
        tensor([[2.5000]])
    """

    def __init__(self, update: Update, decay: float, *, normalize: bool = False) -> None:
        super().__init__()
        if not 0 <= decay < math.inf:
            raise BilevelError(
                f"decay is {decay}: it must be finite and not negative; give 0 ≤ decay, say 1.0"
            )
        self.update = instance_of("update", update, Update, "SignGradient(step) or your own")
        self.differentiable = update.differentiable
        self.needs_context = update.needs_context
        self.decay = decay
        self.normalize = normalize

    @property
    def state_kind(self) -> str:
        """It holds that of the other update too."""
        return f"Momentum({self.update.state_kind})"

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Adds the gradient to m, and takes the other update's step with m."""
        momentum = given("gradient", gradient)
        if self.normalize:
            momentum = unit_norm(momentum, 1)
        previous, inner = (None, None) if state is None else state
        if previous is not None:
            momentum = tree_map(partial(torch.add, alpha=self.decay), momentum, previous)
        y, inner = self.update(y, momentum, context, inner)
        return y, (momentum, inner)

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"decay={self.decay}, normalize={self.normalize}"


def _sign(gradient: Tensor) -> Tensor:
    if gradient.is_complex():
        raise BilevelError(
            "y is complex: complex numbers have no sign, by which this update steps; give "
            "updates.NormalizedGradient or updates.Gradient"
        )
    return torch.sign(gradient)
