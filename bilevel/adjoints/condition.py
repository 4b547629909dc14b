"""The optimality condition F(θ, y) = 0 of an answer."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.problem import overrides
from bilevel.solvers import Iterative, Oracle, Solver
from bilevel.tree import Value, leaves, ravel, tree_map
from bilevel.updates import functional
from bilevel.updates.base import Update
from bilevel.updates.gradient import Gradient
from bilevel.updates.optimizer import Optimizer


def residual_of(
    oracle: Oracle, step: Update | None, y: Value
) -> tuple[Value, int, dict[str, Tensor]]:
    """F, which is zero at an optimum, and the gradient's norm where that is zero there too.

    The gradient of an objective with a value per sample has a part per sample, in y's rows, that
    depends on that sample's y alone; a projection or an update may mix them.

    Args:
        oracle: The problem's.
        step: The update of the fixed-point map; None if the condition is a zero gradient.
        y: Where.

    Returns:
        F in the shape of y, the number of its independent parts, and statistics.
    """
    if step is None or (type(step) is Gradient and not overrides(oracle.follower, "project")):
        gain, gradient = oracle.gain_and_gradient(y)
        parts = len(gain) if gain.dim() and isinstance(y, Tensor) else 1
        return gradient, parts, {"gradient_norm": oracle.stats()["gradient_norm"]}
    moved, _ = oracle.advance(step, tree_map(Tensor.clone, y), None, 1)  # it may work in place
    size = step_size(step)
    return tree_map(lambda own, other: (other - own) / size, y, moved), 1, {}  # y's order of names


def step_size(step: Update | None) -> float:
    """The size η of a gradient step, by which F is divided so that it does not depend on it.

    Args:
        step: The update of the fixed-point map.

    Returns:
        η; 1 for other updates.
    """
    return float(step.step) if isinstance(step, Gradient) else 1.0


def reads_no_gradient(solver: Solver) -> bool:
    """Whether a solver's steps look for a fixed point of their own, not for a zero gradient.

    Args:
        solver: The solver.

    Returns:
        True if so.
    """
    return isinstance(solver, Iterative) and not solver.update.needs_gradient


def decays(solver: Solver) -> bool:
    """Whether a solver's steps look for the optimum of the objective and a weight decay.

    Args:
        solver: The solver.

    Returns:
        True if so.
    """
    update = solver.update if isinstance(solver, Iterative) else None
    return isinstance(update, Optimizer) and functional.decays(update.settings)


def vector(y: Value) -> Tensor:
    """All elements, in float32 at least: half precision overflows, and torch.linalg refuses it.

    Args:
        y: The value.

    Returns:
        The elements, ``(m,)``.
    """
    flat = ravel(y)
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def epsilon(y: Value) -> float:
    """The rounding of a gradient in y.

    Args:
        y: The value.

    Returns:
        The largest machine epsilon of its tensors.
    """
    return max(torch.finfo(leaf.dtype).eps for leaf in leaves(y))
