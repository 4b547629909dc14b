"""The adjoints by name, each with its solver."""

from __future__ import annotations

from collections.abc import Callable

from bilevel import Adjoint, Forward, Implicit, Iterative, Penalty, Sampled, Unrolled
from bilevel.updates import Gradient

THROUGH_ITERATES: dict[str, Callable[[], Adjoint]] = {
    "unrolled": Unrolled,
    "compiled": lambda: Unrolled(compile=True),
    "recomputed": lambda: Unrolled(recompute=True),
    "truncated": lambda: Unrolled(truncate=20),
    "forward": Forward,
    "sampled": lambda: Sampled(0.1, samples=8),
}
"""They differentiate the training run itself, so each solve starts from the initial weights."""

AT_SOLUTION: dict[str, Callable[[], Adjoint]] = {
    "implicit": lambda: Implicit("cg", tolerance=1e-3, warm_start=True),
    "gmres": lambda: Implicit("gmres", tolerance=1e-3, warm_start=True),
    "neumann": lambda: Implicit("neumann", tolerance=0.1, max_steps=500, warm_start=True),
    "penalty": lambda: Penalty(100.0, steps=500),
}
"""They differentiate the solution of training, so each solve is warm-started from the last one."""

NAMES = (*THROUGH_ITERATES, *AT_SOLUTION)
ALL = tuple(name for name in NAMES if name != "forward")
"""All but forward mode, which takes one solve per sample, for a hundred samples at most."""


def make(name: str, step: float, steps: int) -> tuple[Adjoint, Iterative]:
    """An adjoint and its solver.

    Args:
        name: One of :data:`NAMES`.
        step: Step size of gradient descent.
        steps: Number of steps.
    """
    warm = name in AT_SOLUTION
    adjoint = (AT_SOLUTION if warm else THROUGH_ITERATES)[name]()
    return adjoint, Iterative(Gradient(step), steps, warm_start=warm)
