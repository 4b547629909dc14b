"""A solve whose step is compiled with its gradient."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers.checks import check_point
from bilevel.solvers.oracle import Oracle
from bilevel.tree import Value, detach, handed, requiring_grad, tree_map
from bilevel.updates.base import State, Update


class CompiledOracle(Oracle):
    """An oracle with a compiled step; for solves that are differentiated through.

    One step a call: compiling several at once saves calls if a step is tiny, but loses twice as
    much if it is not, since the compiler then saves more for the backward pass.
    """

    def advance(self, update: Update, y: Value, state: State, steps: int) -> tuple[Value, State]:
        """Takes steps, each with its gradient in one compiled call."""
        problem = update, self.follower, self.leader, self.batch
        y = tree_map(requiring_grad, y)  # as from the second step on: no second compilation
        step = f"{type(update).__name__}, followed by {type(self.follower).__name__}.project,"
        for _ in range(steps):
            try:
                moved, state, seen = _call_compiled(*problem, y, state)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise BilevelError(
                    f"a step of {type(update).__name__} cannot be compiled ({_reason(error)}): all "
                    "of it, the objective included, has to be one graph that changes nothing else "
                    "(batch normalisation in evaluation mode, or with track_running_stats=False; "
                    "derivatives inside of it by torch.func.grad); "
                    "or leave out compile=True"
                ) from error
            y = check_point(step, moved, y)
            if seen is not None:
                self.record(*seen)
        return y, state


def _reason(error: BaseException) -> str:
    """What dynamo met, rather than what it calls that."""
    while met := error.__cause__ or error.__context__:
        error = met
    return str(error).partition("\n")[0]


def _call_compiled(*args: Any) -> Any:
    with suppress(torch._dynamo.exc.FailOnRecompileLimitHit):
        return _compiled_step()(*args)
    # torch keeps a few graphs, one for each learning rate and the like: forget those. Not while the
    # error is handled, which would be the reason of any other.
    _compiled_step.cache_clear()
    return _compiled_step()(*args)


@cache
def _compiled_step() -> Any:
    # torch keeps a function's graphs with its code: a copy begins without any.
    step = FunctionType(_step.__code__.replace(), globals())
    return torch.compile(step, fullgraph=True)


def _step(
    update: Update,
    follower: FollowerProblem,
    leader: LeaderProblem,
    batch: Batch,
    y: Value,
    state: State,
) -> tuple[Value, State, tuple[Tensor, Value] | None]:
    """A step of :meth:`Oracle.advance`, and the objective and gradient for its statistics."""

    def total(point: Value) -> tuple[Tensor, Tensor]:
        objective = follower.checked_objective(leader, point, batch)
        return follower.sign * objective.sum(), objective

    gradient = seen = None
    if update.needs_gradient:
        gradient, objective = torch.func.grad(total, has_aux=True)(y)
        seen = objective.detach(), detach(gradient)
    context = follower.context(handed(y), batch) if update.needs_context else None
    y, state = update(y, gradient, context, state)
    return follower.project(y, batch), state, seen
