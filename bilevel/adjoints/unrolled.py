"""The adjoint that differentiates through the solve, step by step."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.adjoints.base import Adjoint
from bilevel.errors import BilevelError
from bilevel.frozen import frozen
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.recompute import recomputed
from bilevel.solvers import Iterative, Parametric, Solution, Solver
from bilevel.solvers.oracle import Oracle, opened
from bilevel.tree import Value, detach, leaves, tree_map
from bilevel.updates.base import State, Update


class Unrolled(Adjoint):
    r"""Differentiates through the solver's own steps, in reverse (Maclaurin et al., 2015).

    .. math:: \frac{dy_{k+1}}{dθ} = \frac{∂T}{∂y}\frac{dy_k}{dθ} + \frac{∂T}{∂θ}, \qquad
              y_{k+1} = T(y_k, θ)

    It is exact for the answer that the solver gives, converged or not, and φ is trained through
    the gradients too. It keeps every step's intermediate values, unless it is told otherwise, and
    needs second derivatives of the objective.

    Args:
        truncate: Of how many last steps (Shaban et al., 2019); None for all. What the others would
            add is dropped: for a follower that contracts by ρ a step, a part ρ^truncate.
        recompute: Keep the points at the ends of segments only, of that many steps, and compute
            what lies between again in the backward pass; True for half the square root of the
            number of steps, which takes little memory, ∝ √steps (Chen et al., 2016).
        compile: Compile the step (``torch.compile``). It pays for solves that are repeated many
            times; the first one takes tens of seconds.

    Raises:
        BilevelError: If an argument is out of its range; in the solve, if the solver or the update
            cannot be differentiated through.

    Example:
        >>> Unrolled(truncate=20, recompute=5)
        Unrolled(truncate=20, recompute=5)
    """

    def __init__(
        self,
        *,
        truncate: int | None = None,
        recompute: int | bool = False,
        compile: bool = False,
    ) -> None:
        for name, value in (("truncate", truncate), ("recompute", recompute)):
            if value is not None and not isinstance(value, bool) and value < 1:
                raise BilevelError(
                    f"{name} is {value!r}: it is a number of steps; give 1, 2, … or leave it out"
                )
        self.truncate = truncate
        self.recompute = recompute
        self.compile = compile
        self._looked = False

    def solve(
        self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem, batch: Batch
    ) -> Solution:
        """Answers with the history of the steps."""
        self._check(solver)
        kind = CompiledOracle if self.compile else Oracle
        with frozen(leader, solver.leader_mode, differentiable=True):
            oracle = kind(follower, leader, batch, differentiable=True)
            if self._plain:
                value = solver.answer(oracle)
            else:
                assert isinstance(solver, Iterative)
                value = self._answer(solver, oracle, leader)
        if not self._looked:
            self._look(leader, value)
        evaluations = torch.tensor(float(oracle.evaluations), device=leaves(value)[0].device)
        return Solution(value, {**oracle.stats(), "evaluations": evaluations})

    @property
    def _plain(self) -> bool:
        return self.truncate is None and not self.recompute

    def _answer(self, solver: Iterative, oracle: Oracle, leader: nn.Module) -> Value:
        kept = solver.steps if self.truncate is None else min(self.truncate, solver.steps)
        with torch.no_grad():
            y, state = oracle.advance(solver.update, *solver.start(oracle), solver.steps - kept)
        # A step's history holds y several times over; where four times, this is the least of all.
        size = math.isqrt(kept // 4) if self.recompute is True else self.recompute or kept
        size = max(size, 1)
        for done in range(0, kept, size):
            steps = partial(oracle.advance, solver.update, steps=min(size, kept - done))
            if self.recompute:
                y, state = recomputed(steps, (leader, solver), y, state)
            else:
                y, state = steps(y, state)
        solver.keep(y, state)
        return y

    def _check(self, solver: Solver) -> None:
        check_steps(self, solver)
        own = isinstance(solver, Iterative) and type(solver).answer is Iterative.answer
        if not self._plain and not own:
            raise BilevelError(
                f"{self!r} cannot cut {type(solver).__name__} into steps: it answers by an "
                "algorithm of its own; give Unrolled() without truncate and recompute, or "
                "Iterative as the solver"
            )

    def _look(self, leader: nn.Module, value: Value) -> None:
        """Says once what the answer does not depend on."""
        self._looked = True
        names = {id(p): name for name, p in leader.named_parameters() if p.requires_grad}
        ignored = names.keys() - _reached(value, set(names))
        self.ignored([name for key, name in names.items() if key in ignored])

    def __repr__(self) -> str:
        settings = {"truncate": self.truncate, "recompute": self.recompute, "compile": self.compile}
        given = [f"{name}={value!r}" for name, value in settings.items() if value]
        return f"Unrolled({', '.join(given)})"


class CompiledOracle(Oracle):
    """An oracle that steps by a compiled function; for solves that are differentiated through.

    One step a call: several together save calls where a step is tiny, and lose twice as much where
    it is not, since the compiler then keeps more for the backward pass.
    """

    def advance(self, update: Update, y: Value, state: State, steps: int) -> tuple[Value, State]:
        """Some steps, each with its gradient in one compiled call."""
        step = _compiled()
        y = tree_map(opened, y)  # as it is from the second call on
        for _ in range(steps):
            try:
                found = step(update, self._follower, self._leader, self._batch, y, state)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).partition("\n")[0]
                raise BilevelError(
                    f"a step of {type(update).__name__} cannot be compiled ({reason}): all of it, "
                    "the objective included, has to be one graph; leave out compile=True"
                ) from error
            y, state, seen = found
            if seen is not None:
                self.note(*seen)
        return y, state


@cache
def _compiled() -> Any:
    return torch.compile(_step, fullgraph=True)


def _step(
    update: Update,
    follower: FollowerProblem,
    leader: LeaderProblem,
    batch: Batch,
    y: Value,
    state: State,
) -> tuple[Value, State, tuple[Tensor, Value] | None]:
    """A step of :meth:`Oracle.advance` as a function of tensors, with what it has seen."""

    def total(point: Value) -> tuple[Tensor, Tensor]:
        objective = follower.checked_objective(leader, point, batch)
        return follower.sign * objective.sum(), objective

    gradient = seen = None
    if update.needs_gradient:
        gradient, objective = torch.func.grad(total, has_aux=True)(y)
        seen = objective.detach(), detach(gradient)
    y, state = update(y, gradient, follower.context(y, batch), state)
    return follower.project(y, batch), state, seen


def check_steps(adjoint: Adjoint, solver: Solver) -> None:
    """Whether a solver has steps that can be differentiated through.

    Args:
        adjoint: Who would.
        solver: The solver.

    Raises:
        BilevelError: If it has not.
    """
    if isinstance(solver, Parametric):
        raise BilevelError(
            f"{adjoint!r} cannot differentiate {type(solver).__name__}: its answer is moved by an "
            "optimizer and not computed from θ; take Implicit(), or Iterative as the solver"
        )
    if isinstance(solver, Iterative):
        check_differentiable(solver.update)


def check_differentiable(update: Update) -> None:
    """Whether a step can be differentiated through.

    Args:
        update: The step rule.

    Raises:
        BilevelError: If it cannot.
    """
    if not update.differentiable:
        raise BilevelError(
            f"{type(update).__name__} does not change with its gradient but in jumps: its "
            "derivative is 0 almost everywhere and says nothing of y*; take updates.Gradient or "
            "NormalizedGradient, or an adjoint that does not differentiate through the step: "
            "Implicit() or Sampled()"
        )


def _reached(value: Value, wanted: set[int]) -> set[int]:
    """Those of the wanted leaves, by identity, that a value's history leads to."""
    found: set[int] = set()
    seen: set[Any] = set()
    ahead = [leaf.grad_fn for leaf in leaves(value) if leaf.grad_fn is not None]
    while ahead and found != wanted:
        node = ahead.pop()
        found |= {id(getattr(node, "variable", None))} & wanted
        fresh = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(fresh)
        ahead.extend(fresh)
    return found
