"""Checks of the losses that the players descend, and of their gradients."""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bilevel.errors import BilevelError, NonFiniteError
from bilevel.solvers import Solver
from bilevel.tree import Value, leaves, versions


class Loss(Enum):
    """What a player descends, by its name in messages."""

    LEADER = "the leader's loss"
    FOLLOWER = "the follower's objective"


_REMEDIES = {
    Loss.LEADER: "compute it from them, without detach or no_grad, and if it depends on them "
    "through y* alone, give the game Implicit(), or with a solver whose steps autograd records "
    "Unrolled()",
    Loss.FOLLOWER: "let the solver compute its answer from them, in one step at least, without "
    "detach or no_grad",
}


def check_gradients(which: Loss, gradients: list[Tensor | None]) -> None:
    """Checks that a backward pass has reached some parameter.

    The loss may have a gradient in the other player's parameters only.

    Args:
        which: Which loss it is.
        gradients: Those of the parameters that move along them.

    Raises:
        BilevelError: If there are parameters and none has a gradient.
    """
    if gradients and all(gradient is None for gradient in gradients):
        raise BilevelError(_no_gradient(which))


def _no_gradient(which: Loss) -> str:
    if torch.is_inference_mode_enabled():
        return f"{which.value} has no gradient in torch.inference_mode(): train outside of it"
    return (
        f"{which.value} does not depend on the parameters that it trains: there is no gradient to "
        f"move along; {_REMEDIES[which]}"
    )


def check_loss(which: Loss, loss: Tensor, moved: list[Tensor]) -> None:
    """Checks that a loss is a scalar with a gradient.

    Args:
        which: Which loss it is.
        loss: The loss.
        moved: The parameters that move along its gradient.

    Raises:
        BilevelError: If it is not a scalar, or has no gradient to move along.
    """
    if not isinstance(loss, Tensor):
        raise BilevelError(f"{which.value} is a {type(loss).__name__}: return a scalar tensor")
    if loss.numel() != 1:
        raise BilevelError(
            f"{which.value} has shape {tuple(loss.shape)}: a player moves along the gradient of "
            "one number; return a scalar, such as the mean over the batch"
        )
    if loss.is_complex():
        raise BilevelError(f"{which.value} is complex: return its real part, .real, or abs()")
    if moved and not loss.requires_grad:
        raise BilevelError(_no_gradient(which))


def check_untouched(moved: list[Tensor]) -> None:
    """Checks that the leader's loss has left the gradients to the game, which adds its own.

    Args:
        moved: The parameters that move along the gradient, which had none before.

    Raises:
        BilevelError: If one has.
    """
    if any(parameter.grad is not None for parameter in moved):
        raise BilevelError(
            f"{Loss.LEADER.value} takes its gradient itself, and the game's would be added to it: "
            "return the loss, without backward()"
        )


def check_answer_kept(solver: Solver, y: Value, before: list[int]) -> None:
    """Checks that the leader's loss has not changed in place what the solver goes on from.

    Args:
        solver: The solver.
        y: Its answer.
        before: The versions of the answer's tensors before the loss was computed.

    Raises:
        BilevelError: If it has changed an answer that is a parameter or a warm start.
    """
    if versions(y) == before:
        return
    kept = [leaf for leaf in tree_leaves(solver.kept) if isinstance(leaf, Tensor)]
    # The storage itself: addresses are 0 on the device meta.
    own = {tensor.untyped_storage()._cdata for tensor in (*solver.parameters(), *kept)}
    if any(leaf.untyped_storage()._cdata in own for leaf in leaves(y)):
        raise BilevelError(
            f"{Loss.LEADER.value} changes y* in place, from which {type(solver).__name__} goes on: "
            "compute a new tensor, y = y - 1 in place of y -= 1"
        )


def check_finite(which: Loss, loss: Tensor, step: int, moved: list[Tensor]) -> None:
    """Checks that a loss is finite; on the CPU only, without synchronisation.

    Args:
        which: Which loss it is.
        loss: The loss.
        step: The number of the step.
        moved: The parameters that move along its gradient.

    Raises:
        NonFiniteError: If it is NaN or infinite.
    """
    if loss.device.type == "cpu" and not math.isfinite(loss.item()):
        cause, remedy = "training has diverged, or the batch is empty or not finite", ""
        if any(parameter.isnan().any() for parameter in moved):  # as after a step along a NaN
            cause = "parameters are NaN: the last step's gradient was, or training has diverged"
            remedy = "keep sqrt, log and norms off 0, where their derivatives are infinite, "
        raise NonFiniteError(
            f"step {step}: {which.value} is {loss.item()}: {cause}; {remedy}lower the learning "
            "rate, or go back to the last checkpoint"
        )
