"""What a game whose gradients are summed over processes checks before it moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bilevel import distributed
from bilevel.adjoints import Detached, Implicit
from bilevel.distributed.sharing import is_summed
from bilevel.errors import BilevelError
from bilevel.fingerprint import fingerprint
from bilevel.frozen import frozen
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, networks_of
from bilevel.randomness import random_state_kept
from bilevel.snapshot import Snapshot
from bilevel.solvers import Parametric
from bilevel.tree import Value, detach, from_leaves, leaves, ravel, tree_map, unravel

if TYPE_CHECKING:
    from bilevel.game import Bilevel


def check_processes(game: Bilevel) -> None:
    """Checks that the processes have shares of one batch and train the same networks. Collective.

    Args:
        game: The game of this process.

    Raises:
        BilevelError: If the shares do not add up to 1, a parameter or a running statistic differs
            between two processes, or a hook would see the gradient before it is summed.
    """
    _check_shares(game)
    own = {}
    for player, network in (("leader", game.leader), ("solver", game.solver)):
        _check_hooks(player, network)
        # The player's own buffers may be the data of this process.
        buffers = [(name, buffer) for name, buffer in network.named_buffers() if "." in name]
        for name, tensor in (*network.named_parameters(), *buffers):
            own[f"{player}.{name}"] = tuple(tensor.shape), fingerprint(tensor)
    for number, theirs in enumerate(distributed.all_gather(own)):
        differing = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if differing:
            others = f" and {len(differing) - 1} other tensors" if len(differing) > 1 else ""
            raise BilevelError(
                f"processes {distributed.rank()} and {number} differ in {differing[0]}{others}: "
                "gradients are summed, so all train the same networks; set one seed before they "
                "are built, or load the same state"
            )


def _check_shares(game: Bilevel) -> None:
    assert game.pool is not None
    shares = distributed.all_gather(float(game.pool.share))
    if abs(sum(shares) - 1) > 1e-6:
        raise BilevelError(
            f"the shares of the batch are {', '.join(f'{share:.3g}' for share in shares)}, which "
            "do not add up to 1: before each step, set game.pool.share to the number of this "
            "process's samples divided by the batch's"
        )


def _check_hooks(player: str, network: nn.Module) -> None:
    if any(parameter._post_accumulate_grad_hooks for parameter in network.parameters()):
        raise BilevelError(
            f"a parameter of the {player} has a hook that runs when its gradient is there, as of "
            "an optimizer that steps in the backward pass: that is the gradient of this process's "
            f"samples alone; let {player}_opt take the step"
        )


def check_same_problem(game: Bilevel, y: Value, batch: Batch) -> None:
    """Checks that each process can solve its own part: that of its samples, or all of it.

    Where the batch shares one y, the objective's gradients at the first process's answer are
    compared. Collective.

    Args:
        game: The game of this process.
        y: Its answer.
        batch: Its data.

    Raises:
        BilevelError: If the batch shares one y, and the problem differs between processes; if each
            sample has its own, and the process's share is not that of its samples, or y is trained,
            or depends on the samples of other processes in a way that the adjoint does not know.
    """
    y = detach(y)
    if not all(leaf.is_floating_point() for leaf in leaves(y)):
        return  # a solver of its own, without gradients
    device = leaves(y)[0].device
    # The first step of a resumed run draws what it would have drawn as a later one.
    kept = random_state_kept(device)
    networks = Snapshot(*networks_of(game.follower)).restored()
    with kept, networks, frozen(game.leader, game.solver.leader_mode), torch.enable_grad():
        # With gradients, as in the solve, for which a network has been compiled.
        point = tree_map(Tensor.requires_grad_, y)
        value = game.follower.checked_objective(game.leader, point, batch)
        if value.dim():
            _check_own_samples(game, len(value))
        elif not (isinstance(game.solver, Parametric) and isinstance(game.adjoint, Detached)):
            _check_same_slope(game, y, value, batch)
        # Else y is a parameter, whose gradient is summed as that of any other.


def _check_same_slope(game: Bilevel, y: Value, value: Tensor, batch: Batch) -> None:
    """Compares the objective's gradients at the first process's y."""
    follower, leader, vector = game.follower, game.leader, ravel(y).detach()
    if not isinstance(game.adjoint, Detached):
        _check_not_summed(follower, value)
    answers = distributed.all_gather(vector.cpu())
    if all(answer.shape == vector.shape for answer in answers):
        own = _slope(follower, leader, unravel(answers[0].to(vector.device), like=y), batch)
        slopes = torch.stack(distributed.all_gather(own))
        apart, largest = (slopes - slopes[0]).norm(dim=1).max(), slopes.norm(dim=1).max()
        if apart <= 1e-3 * largest + 1e-6:
            return
    raise BilevelError(
        f"{type(follower).__name__}.objective is a scalar, so that the batch shares one y, and the "
        "processes have samples of their own: each would find another y; give all the same "
        "samples, leave out the pool and sum objective and loss by distributed.summed, or, if the "
        "leader's loss needs no gradient through y, train y with Parametric and Detached(), or "
        "return one value per sample if each has its own y"
    )


def _check_share(game: Bilevel, samples: int) -> None:
    assert game.pool is not None
    share, whole = float(game.pool.share), sum(distributed.all_gather(samples))
    if abs(share * whole - samples) > 1e-6 * whole:
        raise BilevelError(
            f"game.pool.share is {share:.3g}, and this process has {samples} of the batch's "
            f"{whole} samples: some would count for more than others; before each step, set it to "
            "the number of this process's samples divided by the batch's"
        )


def _check_own_samples(game: Bilevel, samples: int) -> None:
    """The answers of this process's samples are its own, and so is their linear system."""
    if distributed.world_size() == 1:
        return
    _check_share(game, samples)
    if isinstance(game.solver, Parametric):
        raise BilevelError(
            f"{type(game.follower).__name__}.objective is one value per sample, so that each "
            "process trains the y of its own samples, and the pool would sum their gradients row "
            "by row; take Iterative(update, steps=1, warm_start=True), which keeps them apart"
        )
    if getattr(getattr(game.solver, "update", None), "normalize", None) == "batch":
        raise BilevelError(
            f"{game.solver.update!r} divides gradients by the largest of this process's samples: "
            'give it normalize="sample"'
        )
    synchronised = (distributed.SyncBatchNorm, nn.SyncBatchNorm)
    if (
        isinstance(game.adjoint, Implicit)
        and game.solver.leader_mode == "train"
        and any(isinstance(part, synchronised) for part in game.leader.modules())
    ):
        raise BilevelError(
            f"{game.adjoint!r} solves the linear system of this process's samples, and batch "
            'normalisation that is synchronised in leader_mode="train" makes one system of all; '
            'take leader_mode="eval", or Unrolled()'
        )


def _check_not_summed(follower: FollowerProblem, objective: Tensor) -> None:
    """With a pool the leader's losses differ, and their gradients would meet in that of a sum."""
    if is_summed(objective):
        raise BilevelError(
            f"{type(follower).__name__}.objective is summed over the processes, and game.pool sums "
            "the leader's gradients: a gradient through y would mix the losses of the processes; "
            "leave out the pool, and sum the leader's loss by distributed.summed, too"
        )


def _slope(follower: FollowerProblem, leader: LeaderProblem, y: Value, batch: Batch) -> Tensor:
    """The objective's gradient, as a vector on the CPU."""
    point = tree_map(Tensor.requires_grad_, y)
    value = follower.checked_objective(leader, point, batch)
    # So that there is a gradient even if the objective does not use all of y.
    grads = torch.autograd.grad(value + 0 * ravel(point).sum(), leaves(point))
    return ravel(from_leaves(grads, like=point)).cpu()
