"""What a game says before a wrong number comes out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError, NonFiniteError
from bilevel.problem import Batch, FollowerProblem
from bilevel.tree import Value, detach, leaves

if TYPE_CHECKING:
    from bilevel.adjoint import Adjoint
    from bilevel.game import Bilevel


def check_parts(game: Bilevel, adjoint: Adjoint | None) -> None:
    """Whether the parts of a game fit together.

    Args:
        game: The game, before its first step.
        adjoint: The adjoint that was asked for, if any.

    Raises:
        BilevelError: If they do not.
    """
    leader, solver = type(game.leader).__name__, type(game.solver).__name__
    if not game.zero_sum and adjoint is None:
        raise BilevelError(
            f"{leader} is not zero-sum with {type(game.follower).__name__}: treating y* as a "
            "constant would drop a term of the leader's gradient; name the adjoint, "
            "adjoint=Detached() if that is what you want"
        )
    if game.trains_solver and game.solver_opt is None:
        raise BilevelError(
            f"{solver} has parameters but no optimizer: it would never learn; give "
            "solver_opt=torch.optim.Adam(solver.parameters()), or requires_grad_(False)"
        )
    _check_owner("leader_opt", game.leader_opt, "leader", game.leader)
    _check_owner("solver_opt", game.solver_opt, "solver", game.solver)


def check_answer(follower: FollowerProblem, y: Value, batch: Batch) -> None:
    """Whether an answer is finite and lies in Y; looking synchronises the device.

    Args:
        follower: The problem.
        y: The answer.
        batch: The data.

    Raises:
        NonFiniteError: If the answer is NaN or infinite.
        BilevelError: If it lies outside Y.
    """
    with torch.no_grad():
        y = detach(y)
        projected = leaves(follower.project(y, batch))
    for leaf, nearest in zip(leaves(y), projected, strict=True):
        if not leaf.isfinite().all():
            raise NonFiniteError(
                "the follower's first answer is not finite: the objective, its gradient or the "
                "update gave NaN or infinity; check the batch and the update's step"
            )
        distance = float((leaf - nearest).abs().max()) if leaf.numel() else 0.0
        if distance > 1e-5 * max(1.0, float(nearest.abs().max()) if leaf.numel() else 0.0):
            raise BilevelError(
                f"the follower's first answer lies {distance:.3g} outside Y: "
                f"{type(follower).__name__}.project moves it; make project idempotent, and end "
                "Solver.answer with oracle.project(y)"
            )


def require_finite(term: str, loss: Tensor, step: int) -> None:
    """Raises where a loss is NaN or infinite, if looking costs no synchronisation.

    Args:
        term: What the loss is.
        loss: A scalar.
        step: Steps that were finished before.

    Raises:
        NonFiniteError: If it is not finite.
    """
    if loss.device.type == "cpu" and not torch.isfinite(loss.detach()):
        raise NonFiniteError(
            f"step {step}: {term} is {loss.item()}: training has diverged or the batch is not "
            "finite; lower the learning rate, or go back to the last checkpoint"
        )


def check_fits(name: str, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Whether a saved state belongs to this architecture.

    Args:
        name: Whose state it is.
        own: The state dict of the module at hand.
        saved: The saved one.

    Raises:
        BilevelError: If a tensor is missing, left over or of another shape.
    """
    for key in {**own, **saved}:
        there, here = (_shape(state, key) for state in (saved, own))
        if there != here and not key.endswith("_extra_state"):
            raise BilevelError(
                f"the saved {name} is of another architecture: {key} is {there} there and {here} "
                "here; build the network as it was when it was saved"
            )


def _shape(state: dict[str, Any], key: str) -> str:
    value = state.get(key)
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"


def _check_owner(name: str, optimizer: Any, owner_name: str, owner: nn.Module) -> None:
    own = {id(parameter) for parameter in owner.parameters()}
    groups = getattr(optimizer, "param_groups", [])
    if not all(id(parameter) in own for group in groups for parameter in group["params"]):
        raise BilevelError(
            f"{name} moves parameters that do not belong to the {owner_name}: each player has an "
            f"optimizer of its own; build it from {owner_name}.parameters()"
        )
