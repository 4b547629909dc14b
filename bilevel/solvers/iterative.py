"""The solver that applies one step rule repeatedly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map_only

from bilevel.arguments import count, instance_of
from bilevel.errors import BilevelError
from bilevel.frozen import Mode
from bilevel.solvers.base import Solver
from bilevel.solvers.oracle import Oracle
from bilevel.tree import Value, leaves_like, tree_map
from bilevel.updates.base import State, Update, check_state


class Iterative(Solver):
    r"""Applies one update rule ``steps`` times, projecting after each.

    .. math:: y_{k+1} = \Pi_Y\bigl(\mathrm{update}(y_k, \nabla_k, \mathrm{context}(y_k))\bigr)

    The gradient is treated as a constant, as in the paper: φ is trained through the points y_k and
    their contexts, never through ∇ (no second derivatives). With the adjoint
    :class:`~bilevel.Unrolled`, φ is trained through both.

    Args:
        update: The step rule, hand-designed or learned.
        steps: The number of steps; 0 returns the follower's start (no follower at all).
        warm_start: Start from the previous solve's answer and update state, which are part of the
            state dict, instead of :meth:`FollowerProblem.init`: for a y shared by all batches
            (where each sample has its own, that answer is for the last batch's samples). The leader
            then moves after the follower has: ``steps=1`` is alternating play. Every solve moves
            the start of the next one: to solve beside the training, take ``copy.copy(solver)``.
        leader_mode: See :class:`Solver`.

    Attributes:
        kept: With a warm start, the last answer and the update's state there; None before the first
            solve. Setting it to None starts the next one anew.

    Raises:
        BilevelError: If ``update`` is no update, or ``steps`` not a non-negative integer.

    Example:
        >>> from bilevel.updates import SignGradient
        >>> Iterative(SignGradient(0.007), steps=10, warm_start=True)
        Iterative(
          steps=10, warm_start=True
          (update): SignGradient(step=0.007)
        )
    """

    def __init__(
        self,
        update: Update,
        steps: int,
        *,
        warm_start: bool = False,
        leader_mode: Mode = "eval",
    ) -> None:
        super().__init__(leader_mode=leader_mode)
        remedy = "updates.Gradient(0.1), updates.Optimizer(torch.optim.Adam, lr=0.1), … or your own"
        self.update = instance_of("update", update, Update, remedy)
        self.steps = count("steps", steps, least=0)
        self.warm_start = warm_start
        self._kept_by: str | None = None

    @property
    def repeatable(self) -> bool:
        """False with a warm start."""
        return not self.warm_start

    def answer(self, oracle: Oracle) -> Value:
        """Applies the update ``steps`` times."""
        y, state = oracle.advance(self.update, *self.start(oracle), self.steps)
        self.keep(y, state)
        return y

    def keep(self, y: Value, state: State) -> None:
        """With a warm start, stores the start of the next solve.

        Args:
            y: The answer.
            state: The update's state there.

        Raises:
            BilevelError: If the state holds tensors in other objects than tuples, lists and dicts.
        """
        if self.warm_start:
            check_state(self.update, state)
            self.kept = tree_map_only(Tensor, _without_graph, (y, state))
            self._kept_by = self.update.state_kind

    def start(self, oracle: Oracle) -> tuple[Value, State]:
        """The start of a solve.

        Args:
            oracle: The problem.

        Returns:
            The follower's start or the kept answer, and the update's state there.

        Raises:
            BilevelError: If the kept answer is that of a batch of another size, or the kept state
                that of another update.
        """
        y = oracle.init()
        if self.kept is None or not self.warm_start:
            # A copy: it may be a network's weights, and an update of one's own may work in place.
            return tree_map(Tensor.clone, y), None
        kept, state = self.kept
        found, wanted = (leaves_like(tree, like=y) for tree in (kept, y))
        shapes = [[leaf.shape for leaf in tensors] for tensors in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise BilevelError(
                f"warm_start: the kept answer has shapes {shapes[0]}, this batch needs "
                f"{shapes[1]}: a kept answer fits batches of one size; drop the last batch, or "
                "warm_start=False"
            )
        if state is not None and self._kept_by not in (None, self.update.state_kind):
            raise BilevelError(
                f"warm_start: the kept state is that of {self._kept_by}, which "
                f"{self.update.state_kind} cannot read: go on from the kept answer alone, "
                "solver.kept = (solver.kept[0], None), or anew, solver.kept = None"
            )
        # A loaded state may be of another precision or device; as optimizers do, it is converted.
        # Copies, since a projection, and an update with its state, may work in place.
        kinds = {_kind(own): _kind(start) for own, start in zip(found, wanted, strict=True)}
        kept, state = tree_map_only(Tensor, partial(_copied, kinds), (kept, state))
        y = oracle.start_at(kept)  # Y may depend on the batch
        return tree_map(Tensor.clone, y), state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Iterative:
        """Converts or moves what is kept, as ``double()`` and ``to(device)`` do with parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.kept = tree_map_only(Tensor, fn, self.kept)
        return self

    def get_extra_state(self) -> tuple[Value, State, str | None] | None:
        """The kept answer and update state, and of which kind it is, for the state dict.

        Returns:
            None before the first solve and without a warm start.
        """
        return None if self.kept is None else (*self.kept, self._kept_by)

    def set_extra_state(self, state: tuple[Value, State, str | None] | None) -> None:
        """Loads what :meth:`get_extra_state` returned.

        Args:
            state: The kept answer, the update state and its kind, or None.
        """
        y, own, self._kept_by = state or (None, None, None)
        self.kept = state and tree_map_only(Tensor, Tensor.clone, (y, own))

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them.

        Returns:
            The settings apart from the update.
        """
        return f"steps={self.steps}" + (", warm_start=True" if self.warm_start else "")


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


def _copied(kinds: dict[Any, Any], tensor: Tensor) -> Tensor:
    dtype, device = kinds.get(_kind(tensor), _kind(tensor))
    return tensor.to(device, dtype, copy=True)


def _without_graph(tensor: Tensor) -> Tensor:
    """The tensor, detached; its forward derivative stays, with which ``Forward`` goes on."""
    tangent = forward_ad.unpack_dual(tensor).tangent
    constant = tensor.detach()
    return constant if tangent is None else forward_ad.make_dual(constant, tangent)
