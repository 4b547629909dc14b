"""A solve as functions of tensors alone, as a node of autograd's graph needs it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bilevel.adjoints.solved import Gradients, SolvedProblem
from bilevel.containers import partition, shallow_copy, tensors_in
from bilevel.errors import BilevelError, describe, explain_missing_derivative
from bilevel.parameters import Parameters, lent
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, networks_of
from bilevel.snapshot import Snapshot
from bilevel.solvers import Solution, Solver
from bilevel.tree import from_leaves, leaves

if TYPE_CHECKING:
    from bilevel.adjoints.pullback import Pullback


class Task:
    """The part of a solve that is not a tensor, and so hidden from transforms.

    Args:
        adjoint: The adjoint.
        solver: The solver.
        follower: The follower's problem.
        leader: The leader.
        names: The names of its parameters.
        batch: The data.

    Attributes:
        tensors: Those of the batch that pytree finds.
        closed: Those that require a gradient in objects that pytree does not open.
        solution: What the solver gave, with the graph of its steps.
        solves: The number of solves: several under ``vmap``.
        evaluations: The gradient evaluations of all solves.
    """

    def __init__(
        self,
        adjoint: Pullback,
        solver: Solver,
        follower: FollowerProblem,
        leader: LeaderProblem,
        names: tuple[str, ...],
        batch: Batch,
    ) -> None:
        self.adjoint = adjoint
        self.parts = solver, follower, leader
        self.tensors, self.rebuild = partition(batch)
        closed = tensors_in([leaf for leaf in tree_leaves(batch) if not isinstance(leaf, Tensor)])
        self.closed = [tensor for tensor in closed if tensor.requires_grad]
        led = any(tensor.requires_grad for tensor in self.tensors)
        # A batch of constants is handed on itself: its class may not be one that can be rebuilt,
        # and init may keep in it what the leader's loss reads.
        mapped = any(map(torch._C._functorch.is_functorch_wrapped_tensor, self.tensors))
        self.batch = None if led or mapped else (batch,)
        reached = range(len(self.tensors) if adjoint.reaches_batch else 0)
        self.own, self.names = names, (*names, *(f"batch[{number}]" for number in reached))
        self.solved: tuple[Solver, FollowerProblem, LeaderProblem]
        self.snapshot: Snapshot
        self.kept: tuple[Any, Any]
        self.solution: Solution
        self.solves = 0
        self.evaluations = 0
        # The steps are recorded for φ, and to check once that nothing else is trained. Not further
        # where the batch has a graph: the iterates of every solve would be kept with it.
        learned = any(parameter.requires_grad for parameter in solver.parameters())
        needed = learned or not led or not adjoint._held_none
        self.recording = torch.is_grad_enabled() and needed

    def split(self, inputs: Sequence[Tensor]) -> tuple[Parameters, Batch]:
        """All that may be differentiated, by name, and the batch.

        Args:
            inputs: The leader's parameters and the tensors of the batch.

        Returns:
            The parameters and tensors of the batch, by name, and the batch.
        """
        # Detached: functional_call may pass non-leaf tensors, whose requires_grad cannot be set.
        given = {n: p.detach() for n, p in zip(self.own, inputs, strict=False)}
        tensors = [t.detach().requires_grad_(t.requires_grad) for t in inputs[len(given) :]]
        fed = dict(zip(self.names[len(given) :], tensors, strict=False))
        return given | fed, self._batch(tensors)

    def feed(self, given: Parameters) -> Batch:
        """The batch with its tensors by name.

        Args:
            given: The tensors, by name, among others.

        Returns:
            The batch.
        """
        return self._batch([given[name] for name in self.names[len(self.own) :]])

    def _batch(self, tensors: Iterable[Tensor]) -> Batch:
        return self.rebuild(tensors) if self.batch is None else self.batch[0]

    def solve(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Solves.

        Args:
            inputs: See :meth:`split`.

        Returns:
            The answer's tensors.
        """
        solver, follower, leader = self.parts
        theta, batch = self.split(inputs)
        with lent(leader, theta), torch.set_grad_enabled(self.recording):
            self.snapshot, start = Snapshot(leader, solver, *networks_of(follower)), solver.kept
            solution = solver.solve(follower, leader, batch, evaluate=False)
        self.kept = (None, None) if solver.repeatable else (start, solver.kept)
        # As they are now: when the backward pass comes, they may hold the next task.
        self.solved = solver, shallow_copy(follower), leader
        if self.batch is not None and type(batch) in (dict, list):
            self.batch = (copy.copy(batch),)
        self.solves += 1
        self.evaluations += solution.evaluations
        self.solution = solution.counted()
        return tuple(leaf.detach().clone() for leaf in leaves(solution.value))

    def pull(self, wanted: Sequence[bool], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradient of each tensor that is wanted.

        Args:
            wanted: Whether it is, in the order of the inputs.
            tensors: v, the inputs and y*.

        Returns:
            The gradients.

        Raises:
            BilevelError: If v is sparse or several at once, torch lacks a second derivative, or a
                gradient is missing or has a wrong shape.
            RuntimeError: If it fails otherwise.
        """
        history = self.solution.value
        size = len(leaves(history))
        _check_given(self.adjoint, tensors[:size])
        v = from_leaves(tensors[:size], like=history)
        # Detached: its graph leads to this very node.
        y = from_leaves([leaf.detach() for leaf in tensors[-size:]], like=history)
        theta, batch = self.split(tensors[size:-size])
        asked = {name: theta[name] for name, want in zip(self.names, wanted, strict=True) if want}
        if not (self.adjoint.pulls_zero or any(leaf.any() for leaf in leaves(v))):
            return tuple(map(torch.zeros_like, asked.values()))
        outside = not asked.keys() <= {*self.own}
        problem = SolvedProblem(
            *self.solved,
            batch,
            theta,
            y,
            tuple(asked),
            self.snapshot,
            self.solution.stats,
            *self.kept,
            start=self.solution.start,
            feed=self.feed if outside else None,
        )
        try:
            grads = self.adjoint.pull(problem, v)
        except RuntimeError as error:
            explain_missing_derivative(error, self.adjoint)
            raise
        _check_gradients(self.adjoint, grads, asked)
        if not outside and not self.closed:  # else y* may depend on features of the batch alone
            self.adjoint.warn_unused([name for name in asked if grads[name] is None])
        return tuple(from_leaves([grads[name] for name in asked], like=asked).values())


def _check_given(adjoint: Pullback, v: Sequence[Tensor]) -> None:
    if any(tensor.is_sparse for tensor in v):
        raise BilevelError(
            f"the leader's loss has a sparse gradient in y, of which {adjoint!r} makes a vector; "
            "build the embedding with sparse=False, or take Unrolled()"
        )
    if any(map(torch._C._functorch.is_legacy_batchedtensor, v)):
        raise BilevelError(
            f"{adjoint!r} was given several gradients in y at once (is_grads_batched, vectorize): "
            "it follows one after the other; loop over them, or take torch.func.jacrev"
        )


def _check_gradients(adjoint: Pullback, found: Gradients, wanted: Parameters) -> None:
    """Checks that there is a gradient, or None, in the shape of each parameter that is wanted."""
    if not isinstance(found, dict) or not found.keys() >= wanted.keys():
        raise BilevelError(
            f"{type(adjoint).__name__}.pull returned {describe(found)}: it gives the gradient of "
            f"each parameter in problem.wanted; return a dict of {[*wanted]}"
        )
    for name, parameter in wanted.items():
        gradient = found[name]
        if gradient is not None and gradient.shape != parameter.shape:
            raise BilevelError(
                f"{type(adjoint).__name__}.pull returned shape {tuple(gradient.shape)} for {name} "
                f"of shape {tuple(parameter.shape)}: a gradient has its parameter's shape; sum "
                "over the others"
            )
