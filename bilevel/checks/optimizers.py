"""The checks of the players' optimizers."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from bilevel.adjoints import Adjoint, Implicit
from bilevel.errors import BilevelError, describe, few
from bilevel.player import trainable_parameters
from bilevel.solvers import Parametric, Solver
from bilevel.updates.functional import decays
from bilevel.updates.optimizer import STEPS


def check_optimizer(player: str, module: nn.Module, optimizer: Any) -> None:
    """Checks that a player has an optimizer, of its own parameters only.

    Args:
        player: ``"leader"`` or ``"solver"``.
        module: The player.
        optimizer: Its optimizer, or None.

    Raises:
        BilevelError: If it is missing for trainable parameters, is given parameters of others, or
            is built with ``maximize=True``.
    """
    _check_kind_of_optimizer(player, optimizer)
    own = {id(parameter) for parameter in module.parameters()}
    groups = getattr(optimizer, "param_groups", [])
    if not all(id(parameter) in own for group in groups for parameter in group["params"]):
        raise BilevelError(
            f"{player}_opt moves parameters that do not belong to the {player}: each player has "
            f"an optimizer of its own; build it from {player}.parameters()"
        )
    if player == "solver" and optimizer is not None and _requires_closure(optimizer):
        raise BilevelError(
            f"solver_opt is {describe(optimizer)}, whose step needs a closure: the solver moves by "
            "a gradient that is taken once a step; give torch.optim.Adam(solver.parameters())"
        )
    if any(group.get("maximize") for group in groups):
        raise BilevelError(
            f"{player}_opt has maximize=True: a game gives each optimizer a gradient to descend, "
            "the follower's negated, and it would move the wrong way; leave maximize out, and let "
            "the loss read 2 * w.detach() - w for a multiplier w that is to ascend"
        )
    if optimizer is None and trainable_parameters(module):
        raise BilevelError(
            f"{type(module).__name__} has parameters but no optimizer: it would never learn; give "
            f"{player}_opt=torch.optim.Adam({player}.parameters()), or requires_grad_(False)"
        )


def warn_of_unmoved(player: str, module: nn.Module, optimizer: Any) -> None:
    """Warns of parameters that a step gave gradients, and which the optimizer does not have.

    One without a gradient may be trained elsewhere, such as the value network beside a policy.

    Args:
        player: ``"leader"`` or ``"solver"``.
        module: The player.
        optimizer: Its optimizer, or None.
    """
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:  # it does not say which it moves
        return
    moved = {id(parameter) for group in groups for parameter in group["params"]}
    given = [(name, p) for name, p in module.named_parameters() if p.grad is not None]
    if unmoved := [name for name, parameter in given if id(parameter) not in moved]:
        warnings.warn(
            f"{player}_opt does not have the {player}'s {few(unmoved)}: gradients are computed "
            f"that move nothing; build it from {player}.parameters(), or call "
            "requires_grad_(False) on what is to stay as it is",
            stacklevel=2,
        )


def _check_kind_of_optimizer(player: str, optimizer: Any) -> None:
    if isinstance(optimizer, torch.optim.lr_scheduler.LRScheduler):
        raise BilevelError(
            f"{player}_opt is a scheduler of learning rates, {describe(optimizer)}: the game steps "
            "the optimizer and you the scheduler; give the optimizer, and call scheduler.step() "
            "after game.step(batch)"
        )
    if isinstance(optimizer, torch.amp.GradScaler):
        raise BilevelError(
            f"{player}_opt is a GradScaler: a game takes the gradient of the loss as it is; give "
            "the optimizer, and compute under torch.autocast in bfloat16, which needs no scaling"
        )
    if optimizer is not None and (isinstance(optimizer, type) or not hasattr(optimizer, "step")):
        raise BilevelError(
            f"{player}_opt is {describe(optimizer)}: it takes an object with step(closure); give "
            f"{player}_opt=torch.optim.Adam({player}.parameters())"
        )


def _requires_closure(optimizer: Any) -> bool:
    # That of the class: schedulers of learning rates put a function of theirs in its place.
    step = getattr(type(optimizer), "step", None)
    try:
        inspect.signature(step or optimizer.step).bind(*([optimizer] if step else []))
    except TypeError:
        return True
    return False


def warn_of_decay(adjoint: Adjoint, solver: Solver, solver_opt: Any) -> None:
    """Warns where an optimizer moves the answer by weight decay, which the adjoint does not know.

    Args:
        adjoint: The adjoint, which warns.
        solver: The solver.
        solver_opt: Its optimizer, or None.
    """
    if isinstance(adjoint, Implicit) and isinstance(solver, Parametric):
        # Another optimizer's decay may be decoupled.
        known = type(solver_opt) in STEPS
        if known and any(decays(group) for group in solver_opt.param_groups):
            adjoint.warn_of_decay()
