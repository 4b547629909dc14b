"""The base class of adjoints that need only y*, not the iterates that led to it.

The leader's gradient needs one product with the Jacobian dy*/dθ: v ↦ (dy*/dθ)ᵀ v with v = ∂L/∂y.
Such an adjoint is that function: the answer is a node of autograd's graph whose backward calls it.
So it works with any solver, costs nothing until a gradient is required, and is one operation to the
transforms of ``torch.func``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from bilevel.adjoints.base import Adjoint
from bilevel.adjoints.batches import tensors_in
from bilevel.adjoints.solved import SolvedProblem
from bilevel.autograd_graph import check_not_held
from bilevel.errors import BilevelError, describe
from bilevel.parameters import Parameters, lent
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.snapshot import Snapshot
from bilevel.solvers import Solution, Solver
from bilevel.tree import Value, from_leaves, leaves, tree_map

Gradients = Mapping[str, Tensor | None]


class Pullback(Adjoint):
    """An adjoint defined by the vector-Jacobian product v ↦ (dy*/dθ)ᵀ v.

    A subclass implements :meth:`pull`. Of the transforms of ``torch.func``, ``grad`` and ``jacrev``
    work over the leader's parameters (passed by ``functional_call``), and ``vmap`` also over the
    batch's tensors, solving one problem after the other. Derivatives in the batch, and second
    derivatives, raise an error.

    :meth:`pull` adds to the solution's statistics during the backward pass. If v = 0 (a hinge loss
    at zero) it is not called, unless ``pulls_zero``.

    Attributes:
        pulls_zero: Whether :meth:`pull` is called where v = 0 too: for one that updates what it
            keeps from one pull to the next.
    """

    pulls_zero: bool = False

    _held_none: bool = False

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

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks before each solve that the adjoint applies; by default it always does.

        Args:
            solver: The solver.
            follower: The problem.
            leader: The leader.

        Raises:
            BilevelError: If it does not apply.
        """

    def solve(
        self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem, batch: Batch
    ) -> Solution:
        """Solves, with one graph node that leads to θ, and the solver's own graph to φ."""
        self.check(solver, follower, leader)
        theta = dict(leader.named_parameters())
        data, spec = tree_flatten(batch)
        task = _Task(self, solver, follower, leader, tuple(theta), data, spec)
        tensors = [leaf for leaf in data if isinstance(leaf, Tensor)]
        # Those of objects that pytree does not open follow: a gradient there is an error too.
        closed = tensors_in([leaf for leaf in data if not isinstance(leaf, Tensor)])
        tensors += [tensor for tensor in closed if tensor.requires_grad]
        tensors = [_Constant.apply(self, tensor) for tensor in tensors]
        value = from_leaves(_Answer.apply(task, *theta.values(), *tensors), like=task.history)
        if any(leaf.requires_grad for leaf in leaves(task.history)):
            if not self._held_none:
                check_not_held(repr(self), leaves(task.history), theta)
                self._held_none = True
            if task.solves > 1:
                raise BilevelError(
                    f"{type(solver).__name__} is trained and solved under vmap: its gradients "
                    "would be those of the last problem; call solver.requires_grad_(False), or "
                    "solve without vmap"
                )
            # Adds zeros whose graph leads to φ only, as the node leads to θ only: neither gradient
            # costs anything unless it is required.
            value = tree_map(lambda leaf, own: leaf + (own - own.detach()), value, task.history)
        return Solution(value, task.stats, task.evaluations)


class _Task:
    """The part of a solve that is not a tensor, and so hidden from transforms."""

    def __init__(
        self,
        adjoint: Pullback,
        solver: Solver,
        follower: FollowerProblem,
        leader: LeaderProblem,
        names: tuple[str, ...],
        data: list[Any],
        spec: Any,
    ) -> None:
        self.adjoint = adjoint
        self.parts = solver, follower, leader
        self.names = names
        self.data = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in data]
        self.spec = spec
        self.snapshot: Snapshot
        self.kept: tuple[Any, Any]
        self.stats: dict[str, Tensor]
        self.history: Value
        self.solves = 0
        self.evaluations = 0
        self.recording = torch.is_grad_enabled()

    def split(self, inputs: Sequence[Tensor]) -> tuple[Parameters, Batch]:
        """The leader's parameters and the batch."""
        # Detached: functional_call may pass non-leaf tensors, whose requires_grad cannot be set.
        theta = {n: p.detach() for n, p in zip(self.names, inputs, strict=False)}
        tensors = iter(inputs[len(theta) :])
        data = [next(tensors) if constant is None else constant[0] for constant in self.data]
        return theta, tree_unflatten(data, self.spec)

    def solve(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The answer's tensors."""
        solver, follower, leader = self.parts
        theta, batch = self.split(inputs)
        with lent(leader, theta), torch.set_grad_enabled(self.recording):
            self.snapshot, start = Snapshot(leader, solver), _kept(solver)
            solution = solver.solve(follower, leader, batch, evaluate=False)
        self.kept = start, _kept(solver)
        self.solves += 1
        self.evaluations += solution.evaluations
        self.history = solution.value
        device = leaves(solution.value)[0].device
        # y may be bfloat16; unlike torch.tensor, torch.full does not wait for the device.
        evaluations = torch.full((), float(solution.evaluations), device=device)
        self.stats = {**solution.stats, "evaluations": evaluations}
        return tuple(leaf.detach().clone() for leaf in leaves(solution.value))

    def pull(self, wanted: Sequence[bool], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradient of each parameter that is wanted."""
        size = len(leaves(self.history))
        if any(tensor.is_sparse for tensor in tensors[:size]):
            raise BilevelError(
                f"the leader's loss has a sparse gradient in y, of which {self.adjoint!r} makes a "
                "vector; build the embedding with sparse=False, or take Unrolled()"
            )
        v = from_leaves(tensors[:size], like=self.history)
        # Detached: its graph leads to this very node.
        y = from_leaves([leaf.detach() for leaf in tensors[-size:]], like=self.history)
        theta, batch = self.split(tensors[size:-size])
        names = tuple(name for name, want in zip(self.names, wanted, strict=True) if want)
        if not (self.adjoint.pulls_zero or any(leaf.any() for leaf in leaves(v))):
            return tuple(torch.zeros_like(theta[name]) for name in names)
        problem = SolvedProblem(
            *self.parts, batch, theta, y, names, self.snapshot, self.stats, *self.kept
        )
        grads = self.adjoint.pull(problem, v)
        like = {name: theta[name] for name in names}
        _check_gradients(self.adjoint, grads, like)
        self.adjoint.warn_unused([name for name in names if grads[name] is None])
        return tuple(leaves(from_leaves([grads[name] for name in names], like=like)))


def _kept(solver: Solver) -> Any:
    """What a warm-started solver goes on from."""
    return None if solver.repeatable else getattr(solver, "kept", None)


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


class _Constant(torch.autograd.Function):
    """A tensor of the batch, as a node that autograd visits only if its gradient is required.

    ``_Answer`` cannot tell: its ``needs_input_grad`` is fixed in the forward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(adjoint: Pullback, tensor: Tensor) -> Tensor:
        return tensor.detach()  # a view of it, also of a sparse tensor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.adjoint = inputs[0]

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise ctx.adjoint.batch_error()


class _Answer(torch.autograd.Function):
    """Maps θ and the batch to y*."""

    @staticmethod
    def forward(task: _Task, *inputs: Tensor) -> tuple[Tensor, ...]:
        return task.solve(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.task = inputs[0]
        ctx.save_for_backward(*inputs[1:], *output)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1 : 1 + len(ctx.task.names)]
        found = iter(_Pull.apply(ctx.task, wanted, *v, *ctx.saved_tensors) if any(wanted) else ())
        grads = [next(found) if want else None for want in wanted]
        return None, *grads, *(None for _ in ctx.needs_input_grad[1 + len(wanted) :])

    @staticmethod
    def vmap(info: Any, in_dims: Any, task: _Task, *inputs: Tensor) -> Any:
        return _map(info, in_dims[1:], inputs, lambda row: _Answer.apply(task, *row))


class _Pull(torch.autograd.Function):
    """Maps v, with θ, the batch and y*, to (dy*/dθ)ᵀ v."""

    @staticmethod
    def forward(task: _Task, wanted: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        return task.pull(wanted, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.adjoint = inputs[0].adjoint

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise BilevelError(
            f"{ctx.adjoint!r} gives first derivatives only: its gradient cannot be differentiated "
            "again; leave out create_graph=True, or take Unrolled()"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, task: _Task, wanted: Any, *tensors: Tensor) -> Any:
        return _map(info, in_dims[2:], tensors, lambda row: _Pull.apply(task, wanted, *row))


def _map(
    info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor], function: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule for ``vmap``: a loop, since solves branch on the values of tensors."""
    pairs = list(zip(tensors, in_dims, strict=True))
    rows = [
        function([t if dim is None else t.select(dim, i) for t, dim in pairs])
        for i in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return stacked, (0,) * len(stacked)
