"""The checks of problems and solvers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.frozen import frozen
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers import Oracle, Solver
from bilevel.testing.assertions import (
    assert_all_read,
    assert_close,
    assert_moving,
    assert_nearest,
    assert_same_structure,
    assert_samples_independent,
    assert_unchanged,
    beyond,
)
from bilevel.testing.requirement import as_assertion_errors, require
from bilevel.tree import detach, leaves, tree_map


@as_assertion_errors()
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
    depends on all of y, leaves it unchanged and has finite gradients; and where it gives a value
    per sample, that value and the sample's projection depend on its own y only.

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
        far = beyond(oracle, start, tolerance)
        inside = oracle.project(tree_map(Tensor.clone, far))
        again = oracle.project(tree_map(Tensor.clone, inside))
        assert_close(again, inside, tolerance, f"{name}.project moves what it has projected")
        assert_unchanged(oracle, inside)
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


@as_assertion_errors()
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
    _load(unused, solver.state_dict())
    torch.manual_seed(0)
    later = detach(solver.solve(follower, leader, batch).value)
    torch.manual_seed(0)
    loaded = detach(unused.solve(follower, leader, batch).value)
    assert_close(loaded, later, 0.0, f"{name}'s state dict lacks something that its answer needs")


def _load(solver: Solver, state: dict[str, Any]) -> None:
    """Loads the state of a solver that has solved into one that has not."""
    try:
        solver.load_state_dict(state)
    except RuntimeError as error:
        name = type(solver).__name__
        raise AssertionError(
            f"{name} that has not solved cannot load the state dict of one that has, as a resumed "
            f"run does ({' '.join(str(error).split())}): register its buffers with their shapes "
            "at once, or load them in load_state_dict"
        ) from error


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
