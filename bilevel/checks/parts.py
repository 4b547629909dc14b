"""The checks of a game's parts, when it is built."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bilevel.adjoints import Adjoint, Pullback
from bilevel.arguments import instance_of
from bilevel.errors import BilevelError, describe
from bilevel.problem import FollowerProblem, LeaderProblem, ZeroSum
from bilevel.schedules import Schedule
from bilevel.solvers import Parametric, Solver
from bilevel.updates import Optimizer


def is_zero_sum(leader: LeaderProblem, follower: FollowerProblem) -> bool:
    """Whether the leader's loss is the follower's gain.

    Args:
        leader: The leader.
        follower: The follower.

    Returns:
        True for a :class:`~bilevel.ZeroSum` with this follower that does not override ``loss``.
    """
    if not isinstance(leader, ZeroSum):
        return False
    # It may be an attribute, and compiled.
    loss = getattr(leader.loss, "_torchdynamo_orig_callable", leader.loss)
    return leader.follower is follower and getattr(loss, "__func__", None) is ZeroSum.loss


def check_parts(
    leader: Any, follower: Any, solver: Any, adjoint: Any, schedule: Any, *, zero_sum: bool
) -> None:
    """Checks that the parts of a game are of the right kind, and fit together.

    Args:
        leader: An argument of :class:`~bilevel.Bilevel`, as the next ones.
        follower: Likewise.
        solver: Likewise.
        adjoint: Likewise.
        schedule: Likewise.
        zero_sum: See :func:`is_zero_sum`.

    Raises:
        BilevelError: If one is something else, such as a network, a class or an update; if the
            adjoint is missing or has nothing to do, the players share a parameter, or one is
            sharded, the leader is within itself, a method has its parameters in another order, or
            an attribute its name, or a setting of an update is a result of the leader's parameters.
    """
    _check_kinds(leader, follower, solver, adjoint, schedule)
    _check_tree(leader, follower)
    _check_names(leader)
    _check_names(follower)
    _check_order(follower, "init", "batch")
    _check_order(leader, "loss", "y", "batch")
    _check_order(follower, "objective", "leader", "y", "batch")
    for name in ("project", "context"):
        _check_order(follower, name, "y", "batch")
    if adjoint is None and not zero_sum:
        raise BilevelError(
            f"{type(leader).__name__} is not zero-sum with {type(follower).__name__}: treating y* "
            "as a constant would drop a term of the leader's gradient; name the adjoint: "
            "Unrolled(), Implicit(), …, or Detached() if that is what you want (a ZeroSum is "
            "zero-sum only with its own follower object, and if it does not override loss)"
        )
    _check_parameters("leader", leader)
    _check_parameters("solver", solver)
    if isinstance(adjoint, Pullback):
        _check_pullback(adjoint, leader, solver)
    _check_not_shared(leader, solver)
    _check_settings(solver)


def _check_kinds(leader: Any, follower: Any, solver: Any, adjoint: Any, schedule: Any) -> None:
    remedy = "ZeroSum(model, follower), or your own with its loss"
    instance_of("leader", leader, LeaderProblem, remedy)
    instance_of("follower", follower, FollowerProblem, "an object of your own subclass")
    instance_of("solver", solver, Solver, "Iterative(update, steps), Parametric(y) or your own")
    if adjoint is not None:
        instance_of("adjoint", adjoint, Adjoint, "Unrolled(), Implicit(), … or your own")
    if schedule is not None:
        instance_of("schedule", schedule, Schedule, "Alternating(), Extragradient(), … or your own")


def _check_tree(leader: LeaderProblem, follower: FollowerProblem) -> None:
    """Refuses a leader that is a module of its own modules: train() and eval() would not end."""
    if any(child is leader for part in leader.modules() for child in part.children()):
        raise BilevelError(
            f"{type(leader).__name__} is a module within itself, as where a leader holds its "
            f"follower ({type(follower).__name__}) and that its leader: objective is given the "
            'leader; elsewhere keep it by object.__setattr__(self, "leader", leader)'
        )


def _check_order(problem: LeaderProblem | FollowerProblem, name: str, *order: str) -> None:
    """Refuses a method that would take the batch for the leader: arguments go by position."""
    try:
        signature = inspect.signature(getattr(problem, name))
    except ValueError:  # of a function that is not written in Python, such as torch.add
        return
    found = list(signature.parameters)
    known = {"leader", "batch"}.intersection(order, found)  # y has many names
    moved = any(found.index(one) != order.index(one) for one in known)
    if moved or not _takes(signature, len(order)):
        raise BilevelError(
            f"{type(problem).__name__}.{name} takes {', '.join(found) or 'nothing'}: it is called "
            f"with {', '.join(order)}, by position; write its parameters in this order"
        )


def _takes(signature: inspect.Signature, arguments: int) -> bool:
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True


def _check_names(problem: LeaderProblem | FollowerProblem) -> None:
    """Refuses attributes that hide a method, and modules that a method hides."""
    found = vars(problem)  # torch refuses parameters and buffers of such names itself
    hidden = [name for name in found.get("_modules", ()) if hasattr(type(problem), name)]
    base = LeaderProblem if isinstance(problem, LeaderProblem) else FollowerProblem
    methods = [name for name in vars(base) if callable(getattr(base, name))]
    hiding = [name for name in methods if name in found and not callable(found[name])]
    for name in hidden + hiding:
        raise BilevelError(
            f"{type(problem).__name__} has {name} in its class, and self.{name} was set to "
            "something else: one hides the other, and what asks for it meets the wrong one; rename "
            "what was set"
        )


def _check_parameters(player: str, module: nn.Module) -> None:
    """Refuses parameters without a shape, and sharded ones."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise BilevelError(
                f"the {player} has a lazy module that has not seen data: its parameters have no "
                "shape yet, and optimizers and adjoints need them; pass a batch through it first"
            )
        if hasattr(parameter, "device_mesh"):  # of DTensor, whose module takes long to import
            raise BilevelError(
                f"the {player}'s {name} is sharded (fully_shard): a game takes the gradients of "
                "some parameters at a time, and those of shards would not be summed; leave the "
                "network whole, and train in several processes with DistributedDataParallel, or "
                "with game.pool = bilevel.distributed.Pool()"
            )


def _check_pullback(adjoint: Pullback, leader: LeaderProblem, solver: Solver) -> None:
    """Refuses a leader without parameters, and an answer of which only a part is the optimum."""
    if not [*leader.parameters()]:
        raise BilevelError(
            f"{adjoint!r} has nothing to do: it gives the gradient of the leader's parameters "
            "through the answer, and the leader has none; leave the adjoint out, or give "
            "Detached() or Unrolled(), which train the solver"
        )
    trained = {name: p.requires_grad for name, p in solver.named_parameters()}
    if isinstance(solver, Parametric) and len({*trained.values()}) > 1:
        raise BilevelError(
            f"Parametric's {min(trained, key=trained.__getitem__)} is frozen "
            f"(requires_grad=False): {adjoint!r} would take it for a part of the optimum; give "
            "Parametric({n: p for n, p in network.named_parameters() if p.requires_grad}), and "
            "let init return the same"
        )


def _check_not_shared(leader: LeaderProblem, solver: Solver) -> None:
    theta = {id(parameter) for parameter in leader.parameters()}
    shared = [name for name, parameter in solver.named_parameters() if id(parameter) in theta]
    if shared:
        raise BilevelError(
            f"the solver's {shared[0]} is the leader's too: each player would undo the other's "
            "step; do not register parts of one player as modules of the other (a leader finds a "
            "discriminator through its follower, which is no module)"
        )


def _check_settings(solver: Solver) -> None:
    for update in solver.modules():
        settings = update.settings if isinstance(update, Optimizer) else {}
        for name, value in settings.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise BilevelError(
                    f"{name} of {update!r} was computed once, when the update was built, and stays "
                    "as it is when the leader moves: give the leader's parameter itself, or "
                    "compute it in the forward of an update of your own"
                )


def check_in_place(leader: LeaderProblem, returned: object) -> None:
    """Checks that a leader has projected its parameters in place.

    Args:
        leader: The leader.
        returned: What its ``project`` returned.

    Raises:
        BilevelError: If it returned something else than a parameter, which would not be used.
    """
    if returned is None:
        return
    own = {parameter.data_ptr() for parameter in leader.parameters()}
    if not (isinstance(returned, Tensor) and returned.data_ptr() in own):
        raise BilevelError(
            f"{type(leader).__name__}.project returned {describe(returned)}: a leader projects its "
            "parameters in place, and what it returns is not used; write "
            "self.w.copy_(self.w.clamp(0, 1)), say, and return nothing"
        )
