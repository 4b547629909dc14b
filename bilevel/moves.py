"""How the players of a game move, from one answer y*, along the gradients of their losses.

    move_leader    θ along ∇θ L(θ, y*)
    move_solver    φ along the gradient of the follower's mean gain at y*, the leader held fixed
    move_both      both; in a zero-sum game by one backward pass

They are methods of :class:`~bilevel.Bilevel`, from which schedules are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bilevel.adjoints import Detached
from bilevel.checks.losses import (
    Loss,
    check_answer_kept,
    check_finite,
    check_gradients,
    check_loss,
    check_untouched,
)
from bilevel.errors import explain_changed_answer, explain_missing_derivative
from bilevel.frozen import frozen
from bilevel.player import has_hooks, take_step, zero_grad
from bilevel.problem import Batch
from bilevel.tree import Value, detach, tree_map, versions

if TYPE_CHECKING:
    from bilevel.game import Bilevel


def move_leader(game: Bilevel, y: Value, batch: Batch, phi: Sequence[Tensor] = ()) -> Tensor:
    """See :meth:`Bilevel.move_leader`. Its first evaluation fills the gradients of ``phi`` too."""
    if isinstance(game.adjoint, Detached) and not phi:
        # An answer that is φ itself needs no gradient. One with a graph keeps it: the schedule may
        # differentiate by an adjoint of its own.
        y = tree_map(lambda leaf: leaf.detach() if leaf.is_leaf else leaf, y)
    first = partial(_first_loss, game, y, batch, [*phi])
    return take_step(game.leader_opt, game.leader, first, partial(_next_loss, game, y, batch))


def move_solver(game: Bilevel, y: Value, batch: Batch) -> Tensor | None:
    """See :meth:`Bilevel.move_solver`."""
    objective = _backward_solver(game, y, batch)
    if game.solver_opt is not None:
        game.solver_opt.step()
    return objective


def move_both(game: Bilevel, y: Value, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """See :meth:`Bilevel.move_both`."""
    if game.zero_sum and not has_hooks(game.solver):
        phi, objective = zero_grad(game.solver), None
        loss = move_leader(game, y, batch, phi)
        for parameter in phi:  # the follower ascends what the leader descends
            if parameter.grad is not None:
                parameter.grad.neg_()
    else:  # the gradient before the leader moves, the step after: φ may be the answer itself
        objective = _backward_solver(game, y, batch)
        loss = game.move_leader(y, batch)
    if game.solver_opt is not None:
        game.solver_opt.step()
    return loss, objective


def _first_loss(
    game: Bilevel, y: Value, batch: Batch, phi: list[Tensor], theta: list[Tensor]
) -> Tensor:
    # A leader that is not trained is met as the solver meets it, and left as it is.
    with nullcontext() if theta else frozen(game.leader, game.solver.leader_mode):
        loss = _backward_leader(game, y, batch, theta + phi)
    check_gradients(Loss.LEADER, [p.grad for p in theta])
    check_gradients(Loss.FOLLOWER, [p.grad for p in phi])
    return loss


def _next_loss(game: Bilevel, y: Value, batch: Batch, theta: list[Tensor]) -> Tensor:
    with torch.enable_grad():  # which optimizers switch off around their step
        return _backward_leader(game, _solve_again(game, y, batch), batch, theta)


def _solve_again(game: Bilevel, y: Value, batch: Batch) -> Value:
    """The answer at a further evaluation of the leader's loss."""
    if isinstance(game.adjoint, Detached):
        torch.clear_autocast_cache()
        return detach(y)
    use = f"{type(game.leader_opt).__name__} evaluates the leader's loss several times a step"
    once = ", or take an optimizer that evaluates once"
    game.solver.check_repeatable(use, otherwise=once)
    return game.solve(batch).value


def _backward_leader(game: Bilevel, y: Value, batch: Batch, moved: list[Tensor]) -> Tensor:
    before = versions(y)
    loss = game.leader.checked_loss(y, batch)
    check_answer_kept(game.solver, y, before)
    if game.steps == 0 and game.leader_opt is not None and isinstance(loss, Tensor):
        check_untouched(moved)
        game.adjoint.warn_unread(loss, y)
    return _backward(game, Loss.LEADER, loss, moved)


def _backward_solver(game: Bilevel, y: Value, batch: Batch) -> Tensor | None:
    """Fills the gradients of φ, and retains a graph that leads to the leader."""
    if game.solver_opt is None:
        return None
    phi = zero_grad(game.solver)
    if not phi:
        return None
    with frozen(game.leader, game.solver.leader_mode):
        gain = game.follower.gain(game.leader, y, batch)
        loss = -(gain.mean() if gain.dim() else gain)
        retain = not isinstance(game.adjoint, Detached)
        loss = _backward(game, Loss.FOLLOWER, loss, phi, retain_graph=retain)
    check_gradients(Loss.FOLLOWER, [p.grad for p in phi])
    return -loss if game.follower.sign > 0 else loss


def _backward(
    game: Bilevel, which: Loss, loss: Tensor, moved: list[Tensor], *, retain_graph: bool = False
) -> Tensor:
    """Fills the gradients of these parameters only; they and the loss are summed over processes."""
    check_loss(which, loss, moved)
    if game.pool is None:
        check_finite(which, loss, game.steps, moved)
    else:
        loss = loss * game.pool.share
    if moved:
        try:
            loss.backward(inputs=moved, retain_graph=retain_graph)
        except RuntimeError as error:
            if not isinstance(game.adjoint, Detached):
                explain_missing_derivative(error, game.adjoint)
                explain_changed_answer(error)
            raise
    loss = loss.detach().clone()  # it may be a parameter, which is about to move
    if game.pool is not None:
        game.pool.all_reduce_gradients(loss, moved)
        check_finite(which, loss, game.steps, moved)  # now all processes raise, or none
    return loss
