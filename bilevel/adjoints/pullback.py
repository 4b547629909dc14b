"""The base class of adjoints that record none of the iterates that led to y*.

The leader's gradient needs one product with the Jacobian dy*/dθ: v ↦ (dy*/dθ)ᵀ v with v = ∂L/∂y.
Such an adjoint is that function: the answer is a node of autograd's graph whose backward calls it.
So it costs nothing until a gradient is required, and is one operation to the transforms of
``torch.func``. The calls go round by four files:

    forward     Pullback.solve → node.answer → Task.solve → Solver.solve
    backward    the node → Task.pull → Pullback.pull(SolvedProblem, v)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel.adjoints.base import Adjoint
from bilevel.adjoints.node import answer, constant
from bilevel.adjoints.solved import Gradients, SolvedProblem
from bilevel.adjoints.task import Task
from bilevel.autograd_graph import check_not_held, check_not_lost
from bilevel.containers import tensors_in
from bilevel.errors import BilevelError
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers import Solution, Solver
from bilevel.tree import leaves, tree_map


class Pullback(Adjoint):
    """An adjoint defined by the vector-Jacobian product v ↦ (dy*/dθ)ᵀ v.

    A subclass implements :meth:`pull`. Of the transforms of ``torch.func``, ``grad`` and ``jacrev``
    work over the leader's parameters (passed by ``functional_call``), and ``vmap`` also over the
    batch's tensors, solving one problem after the other. Second derivatives raise an error, and
    so do those in the batch, unless it ``reaches_batch``.

    :meth:`pull` adds to the solution's statistics during the backward pass. If v = 0 (a hinge loss
    at zero) it is not called, unless ``pulls_zero``.

    Attributes:
        reaches_batch: Whether :meth:`pull` gives the gradients of tensors of the batch too, which
            are then in ``problem.theta`` and ``problem.wanted`` by the names ``batch[0]``, …: of
            features that the leader has computed from the data.
        pulls_zero: Whether :meth:`pull` is called where v = 0 too: for one that updates what it
            keeps from one pull to the next.
    """

    reaches_batch: ClassVar[bool] = False
    pulls_zero: bool = False

    _held_none = False  # a solve has shown that its steps hold no parameter of the leader
    _read_lent = False  # a pull has shown that the follower holds none either

    @abstractmethod
    def pull(self, problem: SolvedProblem, v: Any) -> Gradients:
        """The product (dy*/dθ)ᵀ v.

        Args:
            problem: The problem and its solution.
            v: ∂L/∂y, in the shape of y.

        Returns:
            The gradient through y* of each parameter in ``problem.wanted``; None if the follower
            does not depend on it.
        """

    def check_lent(self, problem: SolvedProblem, values: Sequence[Tensor] | None = None) -> None:
        """Checks once that the follower reads what is lent, and nothing else that needs a gradient.

        Args:
            problem: The problem and its solution.
            values: What the follower has computed, with a graph; its gain at y* if None.

        Raises:
            BilevelError: If it reads one of the leader's own parameters, or another tensor that
                requires a gradient.
        """
        if self._read_lent:
            return
        if any(not tensor.is_leaf for tensor in tensors_in(problem.batch)):
            return  # features whose own graph leads to θ
        if values is None:
            with torch.enable_grad():
                values = [problem.evaluate({}, lambda oracle: oracle.gain(problem.y))]
        self._check_read(values, problem.leader, problem.follower)
        self._read_lent = True

    def _check_read(
        self, values: Sequence[Tensor], leader: LeaderProblem, follower: FollowerProblem
    ) -> None:
        check_not_held(repr(self), values, dict(leader.named_parameters()))
        check_not_lost(repr(self), values, (leader, follower))

    def batch_error(self) -> BilevelError:
        """The error for a gradient that reaches the batch, where it cannot be given."""
        if not self.reaches_batch:
            return super().batch_error()
        return BilevelError(
            f"the batch requires gradients where {self!r} does not find them: it gives those of "
            "tensors in tuples, lists and dicts; give the batch as one of these"
        )

    def solve(
        self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem, batch: Batch
    ) -> Solution:
        """Solves, with one graph node that leads to θ, and the solver's own graph to φ."""
        self.check(solver, follower, leader)
        theta = dict(leader.named_parameters())
        task = Task(self, solver, follower, leader, tuple(theta), batch)
        tensors = task.tensors if self.reaches_batch else [constant(self, t) for t in task.tensors]
        closed = [constant(self, tensor) for tensor in task.closed]  # a gradient is an error
        value = answer(task, [*theta.values(), *tensors, *closed])
        history = task.solution.value
        connected = any(leaf.requires_grad for leaf in leaves(history))
        if connected and not self._held_none:
            self._check_read(leaves(history), leader, follower)
            self._held_none = True
        if connected and any(parameter.requires_grad for parameter in solver.parameters()):
            if task.solves > 1:
                raise BilevelError(
                    f"{type(solver).__name__} is trained and solved under vmap: its gradients "
                    "would be those of the last problem; call solver.requires_grad_(False), or "
                    "solve without vmap"
                )
            # Adds zeros whose graph leads to φ only, as the node leads to θ only: neither gradient
            # costs anything unless it is required.
            value = tree_map(lambda leaf, own: leaf + (own - own.detach()), value, history)
        return replace(task.solution, value=value, evaluations=task.evaluations)
