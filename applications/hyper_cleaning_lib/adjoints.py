"""The adjoints by name, and the solver that goes with each."""

from __future__ import annotations

from collections.abc import Callable

from bilevel import Adjoint, Forward, Implicit, Iterative, Penalty, Sampled, Unrolled
from bilevel.updates import Gradient

THROUGH_THE_STEPS: dict[str, Callable[[], Adjoint]] = {
    "unrolled": Unrolled,
    "compiled": lambda: Unrolled(compile=True),
    "recomputed": lambda: Unrolled(recompute=True),
    "truncated": lambda: Unrolled(truncate=20),
    "forward": Forward,
    "sampled": lambda: Sampled(0.1, samples=8),
}
"""They differentiate training as it is, from the start: each solve begins there."""

AT_THE_ANSWER: dict[str, Callable[[], Adjoint]] = {
    "implicit": lambda: Implicit("cg", tolerance=1e-3, warm_start=True),
    "gmres": lambda: Implicit("gmres", tolerance=1e-3, warm_start=True),
    "neumann": lambda: Implicit("neumann", tolerance=0.1, max_steps=500, warm_start=True),
    "penalty": lambda: Penalty(100.0, steps=500),
}
"""They ask where training ends, not how it came there: each solve goes on from the last answer."""

NAMES = (*THROUGH_THE_STEPS, *AT_THE_ANSWER)
ALL = tuple(name for name in NAMES if name != "forward")
"""Forward mode takes a solve for each sample: it is for a hundred of them."""


def make(name: str, step: float, steps: int) -> tuple[Adjoint, Iterative]:
    """An adjoint and its solver.

    Args:
        name: One of :data:`NAMES`.
        step: Size of a step of gradient descent.
        steps: How many.
    """
    warm = name in AT_THE_ANSWER
    adjoint = (AT_THE_ANSWER if warm else THROUGH_THE_STEPS)[name]()
    return adjoint, Iterative(Gradient(step), steps, warm_start=warm)
