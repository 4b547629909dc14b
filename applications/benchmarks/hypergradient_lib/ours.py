"""The hypergradient as this library computes it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bilevel import Adjoint, Implicit, Iterative, Unrolled
from bilevel.updates import Gradient
from hypergradient_lib.baselines import ITERATIONS, grad
from hypergradient_lib.task import Task


def _implementation(adjoint: Adjoint) -> Callable[[Task], Tensor]:
    def implementation(task: Task) -> Tensor:
        solver = Iterative(Gradient(task.step), task.steps)
        solution = adjoint.solve(solver, task.follower, task.leader, task.images)
        return grad(task.leader.loss(solution.value, task.images), task.theta)

    return implementation


unrolled = _implementation(Unrolled())
compiled = _implementation(Unrolled(compile=True))
recomputed = _implementation(Unrolled(recompute=True))
implicit = _implementation(Implicit("cg", max_steps=ITERATIONS, tolerance=0.0))
