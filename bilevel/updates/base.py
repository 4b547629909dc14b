"""The noun `Update`: one step rule of the follower, hand-designed or learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from bilevel.tree import Value

State = Any
"""What an update carries from one step to the next: None, or tensors in tuples and dicts."""


class Update(nn.Module, ABC):
    """One step of the follower: ``(y, gradient, context, state) -> (y', state)``.

    A subclass writes :meth:`forward`. With parameters it is a learned optimizer, without it is a
    hand-designed one; a :class:`~bilevel.Solver` treats both alike.

    Attributes:
        needs_gradient: Whether the solver computes the gradient for this update. Where it is
            False, :meth:`forward` is given None and the solve costs no pass of the leader.
        differentiable: Whether the step changes with its gradient other than in jumps. Where it is
            False, no adjoint differentiates through the step.

    Example:
        >>> class Halve(Update):
        ...     needs_gradient = False
        ...     def forward(self, y, gradient, context, state):
        ...         return y / 2, state
        >>> Halve()(torch.ones(1), None, None, None)
        (tensor([0.5000]), None)
    """

    needs_gradient: bool = True
    differentiable: bool = True

    @abstractmethod
    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Moves ``y`` by one step.

        Args:
            y: The follower's variable, ``(B, ...)`` where each sample has its own, or a dict of
                tensors shared by the batch.
            gradient: Same shape as ``y``, turned so that a step along it improves the follower's
                objective, whatever its sense; None where :attr:`needs_gradient` is False.
            context: What :meth:`FollowerProblem.context` tells of the problem at ``y`` (for a
                perturbation the perturbed image), or None.
            state: What the previous step returned; None at the first step.

        Returns:
            The moved variable (the solver projects it) and the state for the next step.
        """
