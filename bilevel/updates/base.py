"""The noun `Update`: one step rule of the follower, hand-designed or learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bilevel.containers import tensors_in
from bilevel.errors import BilevelError, first_line
from bilevel.tree import Value, leaves

State = Any
"""The state of an update between steps: None, or tensors in tuples and dicts."""


class Update(nn.Module, ABC):
    """One step of the follower: ``(y, gradient, context, state) -> (y', state)``.

    A subclass implements :meth:`forward`. With parameters it is a learned optimizer, without it is
    a hand-designed one; a :class:`~bilevel.Solver` treats both alike.

    Attributes:
        needs_gradient: Whether the solver computes the gradient for this update. If False,
            :meth:`forward` gets None and the solve costs no pass of the leader.
        needs_context: Whether the solver computes the follower's context for it, likewise.
        differentiable: Whether the step has a useful derivative in its gradient. False if it is
            piecewise constant: no adjoint then differentiates through the step.

    Example:
        >>> class Halve(Update):
        ...     needs_gradient = False
        ...     def forward(self, y, gradient, context, state):
        ...         return y / 2, state
        >>> Halve()(torch.ones(1), None, None, None)
        (tensor([0.5000]), None)
    """

    needs_gradient: bool = True
    needs_context: bool = True
    differentiable: bool = True

    @property
    def state_kind(self) -> str:
        """What tells apart updates that cannot read each other's states: the class's name."""
        return type(self).__name__

    @abstractmethod
    def forward(self, y: Any, gradient: Any, context: Any, state: State) -> tuple[Value, State]:
        """Moves ``y`` by one step.

        Args:
            y: The follower's variable, ``(B, ...)`` where each sample has its own, or a dict of
                tensors shared by the batch.
            gradient: The gradient of the follower's gain, in the shape of ``y``: a step along it
                improves the objective, whatever its sense. None if not :attr:`needs_gradient`.
            context: :meth:`FollowerProblem.context` at ``y``, for a perturbation the perturbed
                image. None if not :attr:`needs_context`.
            state: The state that the previous step returned; None at the first step.

        Returns:
            The moved variable (the solver projects it) and the state for the next step.
        """


def given(name: str, value: Value | None) -> Value:
    """Checks that ``value`` is not None.

    Args:
        name: "gradient" or "context".
        value: The value that the solver passed.

    Returns:
        ``value``.

    Raises:
        BilevelError: If it is None.
    """
    if value is None:
        raise BilevelError(f"the {name} is None: this update reads it; {_SOURCES[name]}")
    return value


def check_state(update: Update, state: State) -> None:
    """Checks that the tensors of a state are where they can be copied, saved and differentiated.

    Args:
        update: The update that returned it.
        state: The state.

    Raises:
        BilevelError: If one is held by an object other than a tuple, a list or a dict.
    """
    for leaf in tree_leaves(state):
        if not isinstance(leaf, Tensor) and tensors_in(leaf):
            raise BilevelError(
                f"{type(update).__name__} keeps tensors in a {type(leaf).__name__}: those of a "
                "warm start and of recomputed steps are looked for in tuples, lists and dicts "
                "alone; return the state as one of these"
            )


def check_differentiable(update: Update) -> None:
    """Checks that a step can be differentiated through.

    Args:
        update: The step rule.

    Raises:
        BilevelError: If it cannot.
    """
    if not update.differentiable:
        raise BilevelError(
            f"{type(update).__name__} does not change with its gradient but in jumps: its "
            "derivative is 0 almost everywhere and tells nothing about y*; take updates.Gradient "
            "or NormalizedGradient, or an adjoint that does not differentiate through the step: "
            "Implicit() or Sampled()"
        )


def explain_types(update: Update, y: Value, error: RuntimeError) -> None:
    """Raises a clearer error if an update cannot compute with the type of a tensor.

    Args:
        update: The update.
        y: The point that it was to move.
        error: What torch raised.

    Raises:
        BilevelError: If the update's parameters have another precision than y, or torch cannot
            compute with a sparse tensor.
    """
    name, message = type(update).__name__, str(error)
    own = {leaf.dtype for leaf in update.parameters() if leaf.is_floating_point()}
    # Complex numbers are read as real pairs.
    moved = [leaf for leaf in leaves(y) if leaf.is_floating_point() or leaf.is_complex()]
    read = {leaf.dtype.to_real() for leaf in moved}
    if own and read and own.isdisjoint(read) and "type" in message:
        raise BilevelError(
            f"{name} has parameters of type {own.pop()} and y is of type {leaves(y)[0].dtype}: it "
            f"computes with both; call its .to({read.pop()}) before the first step"
        ) from error
    if "sparse" in message.lower():
        raise BilevelError(
            f"{name} cannot compute with a sparse tensor ({first_line(error)}): it moves every "
            "coordinate; where that is the gradient of an embedding, build it with sparse=False"
        ) from error


_SOURCES = {
    "gradient": "compute the gradient wherever update.needs_gradient is True",
    "context": "write FollowerProblem.context, or give inputs=('gradient',)",
}
