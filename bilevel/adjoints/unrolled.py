"""The adjoint that differentiates through the steps of the solve in reverse mode."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from bilevel.adjoints.base import Adjoint
from bilevel.adjoints.compiled import CompiledOracle
from bilevel.arguments import count
from bilevel.autograd_graph import check_not_lost, reached
from bilevel.containers import tensors_in
from bilevel.errors import BilevelError, explain_missing_derivative
from bilevel.frozen import frozen
from bilevel.precision import uncached_autocast
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, networks_of
from bilevel.recompute import recomputed
from bilevel.snapshot import Copied, Snapshot
from bilevel.solvers import Iterative, Parametric, Solution, Solver
from bilevel.solvers.oracle import Oracle
from bilevel.tree import Value, leaves
from bilevel.updates.base import State, check_differentiable, check_state


class Unrolled(Adjoint):
    r"""Reverse-mode differentiation through the solver's steps (Maclaurin et al., 2015).

    .. math:: \frac{dy_{k+1}}{dθ} = \frac{∂T}{∂y}\frac{dy_k}{dθ} + \frac{∂T}{∂θ}, \qquad
              y_{k+1} = T(y_k, θ)

    Exact for the answer that the solver gives, converged or not; of a warm-started solver it counts
    the last solve's steps alone. φ is trained through the gradients too. By default every step's
    intermediate values are saved. The objective must be twice differentiable.

    Args:
        truncate: Differentiate through this many last steps only (Shaban et al., 2019); None for
            all. For a follower that contracts by ρ a step this drops a part ρ^truncate of the
            gradient.
        recompute: Checkpoint segments of this many steps: only their end points are saved, and the
            backward pass computes the rest again. True takes half the square root of the number of
            steps, for a memory of O(√steps) (Chen et al., 2016).
        compile: Compile the step (``torch.compile``). The first solve takes tens of seconds, so it
            is for solves that are repeated many times.

    Raises:
        BilevelError: If an argument is out of range; in the solve, if the solver or the update
            cannot be differentiated through.

    Example:
        >>> Unrolled(truncate=20, recompute=5)
        Unrolled(truncate=20, recompute=5)
    """

    unused_remedy = (
        "if the solver computes outside of autograd (numpy, torch.optim, detach()), take Implicit()"
    )

    def __init__(
        self,
        *,
        truncate: int | None = None,
        recompute: int | bool = False,
        compile: bool = False,
    ) -> None:
        self.truncate = None if truncate is None else count("truncate", truncate)
        by_default = isinstance(recompute, bool)
        self.recompute = recompute if by_default else count("recompute", recompute)
        self.compile = compile
        self._checked = False

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the solver has steps, and ones that can be cut if some are to be."""
        check_steps(self, solver)
        plain = isinstance(solver, Iterative) and type(solver).answer is Iterative.answer
        if not self._whole and not plain:
            raise BilevelError(
                f"{self!r} cannot cut {type(solver).__name__} into steps: it answers by an "
                "algorithm of its own; give Unrolled() without truncate and recompute, or "
                "Iterative as the solver"
            )

    def solve(
        self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem, batch: Batch
    ) -> Solution:
        """Solves with the graph of the steps."""
        solver.check(follower)
        self.check(solver, follower, leader)
        self._check_batch(batch)
        oracle_type = CompiledOracle if self.compile else Oracle
        with frozen(leader, solver.leader_mode, differentiable=True), uncached_autocast():
            oracle = oracle_type(follower, leader, batch, differentiable=True)
            try:
                value = self._answer(solver, oracle)
            except RuntimeError as error:
                self._explain(error, solver)
                raise
        if torch.is_grad_enabled() and not self._checked:
            self._check_graph(leader, batch, value)
        return Solution(value, oracle.stats(), oracle.evaluations, oracle.start).counted()

    def _explain(self, error: RuntimeError, solver: Solver) -> None:
        if "Can't call numpy()" in str(error):
            raise BilevelError(
                f"{type(solver).__name__} computes in numpy, where {self!r} has no graph to "
                "differentiate: take Implicit(), which needs the answer only"
            ) from error
        explain_missing_derivative(error, self)

    @property
    def _whole(self) -> bool:
        return self.truncate is None and not self.recompute

    def _answer(self, solver: Solver, oracle: Oracle) -> Value:
        if self._whole:
            return solver.checked_answer(oracle)
        assert isinstance(solver, Iterative)
        kept = solver.steps if self.truncate is None else min(self.truncate, solver.steps)
        y, state = solver.start(oracle)  # with its graph: the start may depend on θ
        if kept < solver.steps:
            with torch.no_grad():
                y, state = oracle.advance(solver.update, y, state, solver.steps - kept)
        if self.recompute:
            y, state = self._advance_by_segments(solver, oracle, y, state, kept)
        else:
            y, state = oracle.advance(solver.update, y, state, kept)
        solver.keep(y, state)
        return y

    def _advance_by_segments(
        self, solver: Iterative, oracle: Oracle, y: Value, state: State, steps: int
    ) -> tuple[Value, State]:
        """The last steps, of which the end points of segments are saved."""
        # √steps / 2 minimises the memory if a step's graph takes four times that of y.
        size = max(math.isqrt(steps // 4), 1) if self.recompute is True else self.recompute
        players, copied = (oracle.leader, solver), Copied()
        check = None
        if not self._checked:
            check = partial(check_not_lost, repr(self), holders=(oracle.leader, oracle.follower))
        for done in range(0, steps, size):
            segment = partial(oracle.advance, solver.update, steps=min(size, steps - done))
            now = Snapshot(*players, *networks_of(oracle.follower), copied=copied)
            y, state = recomputed(segment, players, now, y, state, check=check)
            if check:
                check_state(solver.update, state)
        return y, state

    def _check_batch(self, batch: Batch) -> None:
        """Recomputed steps give the batch no gradient."""
        if not self.recompute or not torch.is_grad_enabled():
            return
        if any(tensor.requires_grad for tensor in tensors_in(batch)):
            raise self.batch_error()

    def _check_graph(self, leader: nn.Module, batch: Batch, value: Value) -> None:
        """Warns of the parameters that the answer does not depend on.

        Not inside another follower's objective, whose y in the batch may be all that it reads.
        """
        self._checked = True
        if any(tensor.requires_grad for tensor in tensors_in(batch)):
            return
        theta = {name: p for name, p in leader.named_parameters() if p.requires_grad}
        used = reached(leaves(value), theta)
        self.warn_unused([name for name in theta if name not in used])


def check_steps(adjoint: Adjoint, solver: Solver) -> None:
    """Checks that a solver has steps that can be differentiated through.

    Args:
        adjoint: The adjoint that differentiates, for the message.
        solver: The solver.

    Raises:
        BilevelError: If it has none.
    """
    if type(solver).answer is Parametric.answer:
        raise BilevelError(
            f"{adjoint!r} cannot differentiate {type(solver).__name__}: its answer is moved by an "
            "optimizer and not computed from θ; take Implicit(), or Iterative as the solver"
        )
    if isinstance(solver, Iterative):
        check_differentiable(solver.update)
