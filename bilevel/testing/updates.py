"""The check of updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel.containers import objects_in, partition
from bilevel.player import trainable_parameters
from bilevel.testing.assertions import assert_same_structure
from bilevel.testing.requirement import as_assertion_errors, require
from bilevel.tree import Value, leaves, ravel, tree_map
from bilevel.updates.base import State, Update, check_state


@as_assertion_errors()
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
    moved, state = _checked_step(update, y, gradient, context)
    first = [leaf.detach().clone() for leaf in leaves(moved)]
    moved, _ = _step(update, moved, gradient, context, state)
    assert_same_structure(moved, y, f"{name} with its own state")
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


def _checked_step(
    update: Update, y: Value, gradient: Value, context: Tensor | None
) -> tuple[Value, State]:
    """The first step of an update, if what it returns has the right form."""
    name, result = type(update).__name__, _step(update, y, gradient, context, None)
    require(
        type(result) is tuple and len(result) == 2,
        f"{name} returns a {type(result).__name__} where it must return y and its state, a pair",
    )
    moved, state = result
    assert_same_structure(moved, y, name)
    check_state(update, state)
    return moved, state


def _step(update: Update, *arguments: Any) -> Any:
    """A step, if it leaves its arguments as they are."""
    tensors, _ = partition(arguments)
    before = [(leaf._version, leaf.detach().clone()) for leaf in tensors]
    result = update(*arguments)
    require(  # by their versions too: the sign of a sign is the same
        all(
            leaf._version == version and torch.equal(leaf, copy)
            for leaf, (version, copy) in zip(tensors, before, strict=True)
        ),
        f"{type(update).__name__} modifies its arguments",
    )
    return result


def _attributes(update: Update) -> list[tuple[int, object, object]]:
    """What tells whether something held is another object, or a tensor changed in place."""
    held = [value for part in update.modules() for value in objects_in(vars(part))]
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
