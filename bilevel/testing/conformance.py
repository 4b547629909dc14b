"""The checks of problems, updates and solvers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.containers import partition
from bilevel.errors import BilevelError
from bilevel.frozen import frozen
from bilevel.player import trainable_parameters
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers import Oracle, Solver
from bilevel.testing.assertions import (
    assert_all_read,
    assert_close,
    assert_moving,
    assert_nearest,
    assert_same_structure,
    assert_samples_independent,
)
from bilevel.testing.requirement import require
from bilevel.tree import Value, detach, leaves, ravel, tree_map
from bilevel.updates.base import Update, check_state


@contextmanager
def _as_assertion_errors() -> Iterator[None]:
    """Raises the library's own errors as assertion errors."""
    try:
        yield
    except BilevelError as error:
        raise AssertionError(str(error)) from error


@_as_assertion_errors()
@torch.random.fork_rng()
def check_follower(
    follower: FollowerProblem,
    leader: LeaderProblem,
    batch: Batch,
    *,
    tolerance: float = 1e-5,
    nearest: bool = True,
) -> None:
    """Checks the properties of a follower that solvers rely on.

    The start lies in Y, and its gradient is not zero where other points are better; ``project``
    gives the nearest point of Y, keeps shapes and is idempotent; the objective has the right shape,
    depends on all of y and has finite gradients; and where it gives a value per sample, that value
    and the sample's projection depend on its own y only.

    Args:
        follower: The problem under test.
        leader: A leader to evaluate it with.
        batch: Data to evaluate it on, of two samples at least.
        tolerance: The largest distance of a point of Y from its projection, in units of y.
        nearest: Whether ``project`` must give the nearest point of Y, by which projected gradient
            steps and :class:`~bilevel.Implicit` are right. False for compositions of projections
            that are not, as that of :class:`~bilevel.robustness.L2` onto ball and box.

    Raises:
        AssertionError: If a requirement is violated.

    Example:
        >>> from bilevel import ZeroSum
        >>> class Box(FollowerProblem):
        ...     sense = "max"
        ...     def init(self, batch): return torch.zeros_like(batch)
        ...     def objective(self, leader, y, batch): return leader.model(batch + y).sum(1)
        ...     def project(self, y, batch): return y.clamp(-1, 1)
        >>> check_follower(Box(), ZeroSum(torch.nn.Linear(3, 1), Box()), torch.randn(4, 3))
    """
    with frozen(leader):
        name = type(follower).__name__
        oracle = Oracle(follower, leader, batch)
        start = detach(oracle.init())
        again = oracle.project(tree_map(Tensor.clone, start))  # it may work in place
        assert_close(again, start, tolerance, f"{name}.init gives a point that project moves")
        far = tree_map(lambda leaf: leaf + torch.randn_like(leaf), start)
        inside = oracle.project(tree_map(Tensor.clone, far))
        assert_same_structure(inside, start, f"{name}.project")
        again = oracle.project(tree_map(Tensor.clone, inside))
        assert_close(again, inside, tolerance, f"{name}.project moves what it has projected")
        for point, where in ((inside, "at a point of Y"), (start, "where init starts")):
            require(
                all(leaf.isfinite().all() for leaf in leaves(oracle.gradient(point))),
                f"{name}.objective has a gradient that is not finite {where}",
            )
        assert_all_read(oracle, inside)
        assert_samples_independent(oracle, far, inside, tolerance)
        if nearest:
            assert_nearest(oracle, far, inside, tolerance)
        assert_moving(oracle, start, inside)


@_as_assertion_errors()
@torch.random.fork_rng()
def check_update(
    update: Update,
    y: Value,
    gradient: Value | None = None,
    context: Tensor | None = None,
) -> None:
    """Checks the properties of an update that solvers rely on.

    It returns y in the same shape, does not modify its arguments, accepts its own state, which it
    keeps nowhere else, gives a finite y also if the gradient is zero, and its parameters receive
    gradients. If it has none to learn which way to go, it moves along the gradient, not against it.

    Args:
        update: The update under test.
        y: A point.
        gradient: A gradient there; random if None.
        context: A context there, if the update reads one.

    Raises:
        AssertionError: If a requirement is violated.

    Example:
        >>> from bilevel.updates import SignGradient
        >>> check_update(SignGradient(0.1), torch.zeros(2, 3))
    """
    name = type(update).__name__
    if gradient is None:
        gradient = tree_map(torch.randn_like, y)
    kept = _attributes(update)
    torch.manual_seed(0)
    result = update(y, gradient, context, None)
    require(
        type(result) is tuple and len(result) == 2,
        f"{name} returns a {type(result).__name__} where it must return y and its state, a pair",
    )
    moved, state = result
    assert_same_structure(moved, y, name)
    check_state(update, state)
    first = [leaf.detach().clone() for leaf in leaves(moved)]
    arguments, _ = partition((moved, gradient, context, state))
    copies = [leaf.detach().clone() for leaf in arguments]
    moved, _ = update(moved, gradient, context, state)
    assert_same_structure(moved, y, f"{name} with its own state")
    require(all(map(torch.equal, arguments, copies)), f"{name} modifies its arguments")
    torch.manual_seed(0)
    again, _ = update(y, gradient, context, None)
    # A change alone may be that of a cache, another answer alone that of noise of its own.
    require(
        kept == _attributes(update) or all(map(torch.equal, leaves(again), first)),
        f"{name} keeps its state in self: it moves elsewhere when it begins again, in the next "
        "solve or where steps are repeated; return the state, and read the one that is given",
    )
    parameters = trainable_parameters(update)
    if parameters:
        total = torch.stack([leaf.square().sum() for leaf in leaves(moved)]).sum()
        unused = f"{name}'s answer does not depend on its parameters"
        require(total.requires_grad, unused)
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        require(any(grad is not None for grad in grads), unused)
    elif update.needs_gradient:
        _assert_ascends(update, y, gradient, context)
    still, _ = update(y, tree_map(torch.zeros_like, gradient), context, None)
    require(
        all(leaf.isfinite().all() for leaf in leaves(still)),
        f"{name} gives NaN or infinity where the gradient is zero",
    )


def _attributes(update: Update) -> list[tuple[int, object, object]]:
    """What tells whether an attribute is another object, or a tensor that was changed in place."""
    held = [value for part in update.modules() for value in vars(part).values()]
    return [(id(value), value, getattr(value, "_version", None)) for value in held]


def _assert_ascends(update: Update, y: Value, gradient: Value, context: Tensor | None) -> None:
    """The gradient moves y further along itself than its opposite does."""

    def moved(slope: Value) -> Tensor:
        torch.manual_seed(0)  # of an update with noise
        return ravel(tree_map(lambda _, leaf: leaf, y, update(y, slope, context, None)[0]))

    end = moved(gradient)
    if not torch.equal(end, moved(gradient)):
        return  # its noise is not torch's: nothing to compare
    apart = end - moved(tree_map(torch.neg, gradient))
    require(
        bool(apart @ ravel(tree_map(lambda _, leaf: leaf, y, gradient)) >= 0),
        f"{type(update).__name__} moves y against the gradient: a step along it improves the "
        "objective, whether the follower maximises or minimises; add it",
    )


@_as_assertion_errors()
@torch.random.fork_rng()
def check_solver(
    solver: Solver,
    follower: FollowerProblem,
    leader: LeaderProblem,
    batch: Batch,
    *,
    tolerance: float = 1e-5,
) -> None:
    """Checks the properties of a solver that a game relies on.

    The leader is left bit for bit as it was (parameters, gradients, buffers, training flags); the
    answer lies in Y and is finite; the same seed gives the same answer; and so does a copy that
    loads the solver's state dict.

    Args:
        solver: The solver under test.
        follower: A problem.
        leader: A leader.
        batch: Data.
        tolerance: The largest distance of the answer from its projection, in units of y.

    Raises:
        AssertionError: If a requirement is violated.
    """
    name = type(solver).__name__
    twin, unused = copy.deepcopy(solver), copy.deepcopy(solver)
    before = _state(leader)
    torch.manual_seed(0)
    solution = solver.solve(follower, leader, batch)
    for (what, old), new in zip(before.items(), _state(leader).values(), strict=True):
        both = isinstance(old, Tensor) and isinstance(new, Tensor)
        same = torch.equal(old, new) if both else old is new
        require(same, f"{name}.solve changed the leader's {what}")
    value = detach(solution.value)
    oracle = Oracle(follower, leader, batch)
    assert_same_structure(value, oracle.init(), name)
    nearest = oracle.project(tree_map(Tensor.clone, value))
    assert_close(nearest, value, tolerance, f"{name}'s answer lies outside Y")
    for stat, number in solution.stats.items():
        require(bool(torch.isfinite(number)), f"{name}'s {stat} is {number.item()}")
    torch.manual_seed(0)
    again = twin.solve(follower, leader, batch).value
    assert_close(again, value, 0.0, f"{name} gives another answer with the same seed")
    unused.load_state_dict(solver.state_dict())
    torch.manual_seed(0)
    later = detach(solver.solve(follower, leader, batch).value)
    torch.manual_seed(0)
    loaded = detach(unused.solve(follower, leader, batch).value)
    assert_close(loaded, later, 0.0, f"{name}'s state dict lacks something that its answer needs")


def _state(module: nn.Module) -> dict[str, Any]:
    """A copy of everything that a solve must not change."""
    state: dict[str, Any] = {}
    for name, parameter in module.named_parameters():
        state[f"parameter {name}"] = parameter.detach().clone()
        state[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"requires_grad of {name}"] = parameter.requires_grad
    state |= {f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}
    state |= {f"training flag of {name}": part.training for name, part in module.named_modules()}
    return state
