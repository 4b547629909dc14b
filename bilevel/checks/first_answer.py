"""What a game checks of its first answer, which waits for the device."""

from __future__ import annotations

import copy
import random
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bilevel.adjoints import Detached
from bilevel.autograd_graph import vjp
from bilevel.checks.processes import check_same_problem
from bilevel.errors import BilevelError, NonFiniteError
from bilevel.player import trainable_parameters
from bilevel.problem import Batch, FollowerProblem
from bilevel.randomness import random_state_kept
from bilevel.solvers import Iterative, Solution
from bilevel.solvers.checks import check_answer, check_point
from bilevel.tree import Value, detach, largest_difference, leaves, leaves_like, tree_map

if TYPE_CHECKING:
    from bilevel.game import Bilevel


def check_first_answer(game: Bilevel, solution: Solution, batch: Batch) -> None:
    """Checks the form of an answer, that it lies in Y, and that it is the answer to one problem.

    Args:
        game: The game.
        solution: The answer.
        batch: The data.

    Raises:
        BilevelError: If the answer has not the form of the start, one of the two lies outside Y,
            Y depends on the leader where the adjoint takes the answer for a constant, or processes
            share a y of different problems.
        NonFiniteError: If one of the two is NaN or infinite.
    """
    y, start = solution.value, solution.start
    if start is None:
        with random_state_kept(leaves(y)[0].device), torch.no_grad():
            start = _trial(game.follower).init(batch)
    check_answer(type(game.solver).__name__, y, start)
    if isinstance(game.solver, Iterative):  # others may read its form only
        check_feasible(game.follower, start, batch, "start")
    check_feasible(game.follower, y, batch)
    _warn_of_nan(game.follower, solution)
    if game.zero_sum and isinstance(game.adjoint, Detached):
        _check_fixed_constraints(game, y, batch)
    if game.pool is not None:
        check_same_problem(game, y, batch)


def _warn_of_nan(follower: FollowerProblem, solution: Solution) -> None:
    """Warns of a gradient that is NaN where the answer does not show it: the sign of NaN is 0."""
    norm = solution.stats.get("gradient_norm")
    if norm is not None and norm.isnan():
        warnings.warn(
            f"{type(follower).__name__}.objective has a gradient in y that is NaN, along which a "
            "sign step does not move: check the batch and the leader's parameters, and keep sqrt, "
            "log and norms off 0, where their derivatives are infinite",
            stacklevel=2,
        )


def _trial(follower: FollowerProblem) -> FollowerProblem:
    """The follower, to call ``init`` where the solve does not: it may keep what it draws."""
    trial = copy.copy(follower)
    for name, value in vars(follower).items():  # else a resumed run would draw other numbers
        if isinstance(value, torch.Generator):
            object.__setattr__(trial, name, value.clone_state())
        elif isinstance(value, random.Random | np.random.Generator | np.random.RandomState):
            object.__setattr__(trial, name, copy.deepcopy(value))
    return trial


def check_feasible(
    follower: FollowerProblem, y: Value, batch: Batch, what: str = "first answer"
) -> None:
    """Checks that a point is finite and lies in Y.

    Args:
        follower: The problem.
        y: The point.
        batch: The data.
        what: What it is.

    Raises:
        NonFiniteError: If the point or its projection is NaN or infinite.
        BilevelError: If it lies outside Y.
    """
    with torch.no_grad():
        y = detach(y)
        projected = follower.project(tree_map(Tensor.clone, y), batch)  # it may work in place
    check_point(f"{type(follower).__name__}.project", projected, y)
    for leaf, nearest in zip(leaves(y), leaves_like(projected, like=y), strict=True):
        if not leaf.isfinite().all():
            raise NonFiniteError(
                f"the follower's {what} is not finite: init, the objective, its gradient or "
                "the update gave NaN or infinity; check the batch and the update's step"
            )
        if not nearest.isfinite().all():
            raise NonFiniteError(
                f"{type(follower).__name__}.project gives NaN or infinity where the follower's "
                f"{what} is finite: check the batch, and keep what project divides by off 0"
            )
        distance = largest_difference(leaf, nearest)
        rounding = torch.finfo(leaf.dtype).eps if leaf.is_floating_point() else 0.0
        largest = largest_difference(nearest, torch.zeros_like(nearest))
        if distance > max(1e-5, 2 * rounding) * max(1.0, largest):
            raise BilevelError(
                f"the follower's {what} lies {distance:.3g} outside Y: "
                f"{type(follower).__name__}.project moves it; make project idempotent, let init "
                "return a point of Y, and end a solver's answer with oracle.project(y)"
            )


def _check_fixed_constraints(game: Bilevel, y: Value, batch: Batch) -> None:
    """Checks that Y does not depend on the leader, as Danskin's theorem requires."""
    try:
        with torch.enable_grad():
            projected = game.follower.project(tree_map(Tensor.clone, detach(y)), batch)
    except RuntimeError:  # it computes outside of autograd (numpy)
        return
    points, theta = leaves(projected), trainable_parameters(game.leader)
    grads = vjp(points, theta, [*map(torch.ones_like, points)])
    if any(grad is not None for grad in grads):
        raise BilevelError(
            f"{type(game.follower).__name__}.project depends on the leader's parameters, and "
            "Detached() has no gradient for constraints that move with them; take Unrolled() or "
            "Implicit(), or if they are to be constants, detach the parameters in project"
        )
