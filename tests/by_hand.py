"""The gradients of a game's players by hand: a loop, dense matrices and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from bilevel import Alternating, Bilevel, Forward, Implicit, Parametric, Unrolled, frozen
from bilevel.tree import from_leaves, leaves, ravel, tree_map
from bilevel.updates import Gradient


def gradients(game: Bilevel, batch: Any, kept: Any) -> tuple[list[Any], list[Any]]:
    """Those of what the leader and the solver descend; ``kept`` is where a warm start begins."""
    now = "train" if game.solver.training else "eval"
    with torch.enable_grad(), frozen(game.solver, now, differentiable=True):
        return _of_leader(game, batch, kept), _of_solver(game, batch, kept)


def _of_leader(game: Bilevel, batch: Any, kept: Any) -> list[Any]:
    theta = [p for p in game.leader.parameters() if p.requires_grad]
    recorded = isinstance(game.adjoint, Unrolled | Forward)
    y = answer(game, batch, kept, recorded=recorded)
    y = y if recorded else leaf(y)
    loss = game.leader.loss(y, batch)
    direct = grad(loss, theta, allow_unused=True, retain_graph=True)
    if not isinstance(game.adjoint, Implicit):
        return [*direct]
    through = implicit(game, y, batch, from_leaves(grad(loss, leaves(y)), like=y), theta)
    return [b if a is None else a + b for a, b in zip(direct, through, strict=True)]


def _of_solver(game: Bilevel, batch: Any, kept: Any) -> list[Any]:
    phi = [p for p in game.solver.parameters() if p.requires_grad]
    if not phi:
        return []
    y = answer(game, batch, kept, recorded=isinstance(game.adjoint, Unrolled))
    if game.zero_sum and not isinstance(game.schedule, Alternating):
        cost = -game.leader.loss(y, batch)  # from the leader's own backward pass, in its mode
    else:
        with frozen(game.leader, game.solver.leader_mode, differentiable=True):
            cost = -sign(game) * game.follower.objective(game.leader, y, batch).mean()
    return [*grad(cost, phi, allow_unused=True)]


def sign(game: Bilevel) -> int:
    return 1 if game.follower.sense == "max" else -1


def leaf(y: Any) -> Any:
    return tree_map(lambda one: one.detach().requires_grad_(), y)


def slope(game: Bilevel, y: Any, batch: Any, *, graph: bool) -> Any:
    """The gradient of the follower's gain in y."""
    gain = sign(game) * game.follower.objective(game.leader, y, batch).sum()
    return from_leaves(grad(gain, leaves(y), create_graph=graph), like=y)


def answer(game: Bilevel, batch: Any, kept: Any, *, recorded: bool) -> Any:
    """y* with a graph to φ; if it is recorded, through the gradients of the last steps too."""
    solver, follower = game.solver, game.follower
    if isinstance(solver, Parametric):
        return solver.y if isinstance(solver.y, Tensor) else dict(solver.y.named_parameters())
    last = getattr(game.adjoint, "truncate", None) or solver.steps
    with frozen(game.leader, solver.leader_mode, differentiable=True):
        y, state = follower.init(batch), None
        if kept is not None:
            y, state = follower.project(kept[0], batch), kept[1]
        for left in range(solver.steps, 0, -1):
            if recorded:
                y = tree_map(lambda one: one if one.requires_grad else leaf(one), y)
            gradient = slope(game, y if recorded else leaf(y), batch, graph=recorded)
            with torch.set_grad_enabled(not recorded or left <= last):
                y, state = solver.update(y, gradient, follower.context(y, batch), state)
                y = follower.project(y, batch)
    return y


def implicit(game: Bilevel, y: Any, batch: Any, v: Any, theta: list[Tensor]) -> list[Any]:
    """(∂F/∂θ)ᵀ w with (damping − ∂F/∂y)ᵀ w = v, for F = ∇ or (Π(y + η∇) − y) / η."""
    own = getattr(game.solver, "update", None)
    size = own.step if isinstance(own, Gradient) else 1.0
    with frozen(game.leader, game.solver.leader_mode, differentiable=True):
        condition = slope(game, y, batch, graph=True)
        if game.follower.box:
            moved = tree_map(lambda one, up: one + size * up, y, condition)
            nearest = game.follower.project(moved, batch)
            condition = tree_map(lambda one, near: (near - one) / size, y, nearest)
        flat = ravel(condition)
        rows = [ravel(from_leaves(grad(f, leaves(y), retain_graph=True), like=y)) for f in flat]
        matrix = game.adjoint.damping * torch.eye(len(flat)).to(flat) - torch.stack(rows)
        return [*grad(flat, theta, torch.linalg.solve(matrix.T, ravel(v)))]
