"""Checks of what followers, updates and solvers return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bilevel.errors import BilevelError, describe
from bilevel.tree import Value, from_leaves, is_value, leaves, leaves_like, same_structure


def check_point(source: str, found: Value, y: Value) -> Value:
    """Checks that what an update or a projection returned is of the kind and the shapes of y.

    Args:
        source: The name of the update or the projection.
        found: What it returned.
        y: The point that it was given.

    Returns:
        It, its names in y's order, since the state of an update may go by their position.

    Raises:
        BilevelError: If it is not.
    """
    if not same_structure(found, y):
        raise BilevelError(
            f"{source} returned {describe(found)} for {describe(y)}: a point of Y is of the kind "
            "that init gives; return that"
        )
    tensors = leaves_like(found, like=y)
    for leaf, own in zip(tensors, leaves(y), strict=True):
        if leaf.shape != own.shape:
            raise BilevelError(
                f"{source} returned shape {tuple(leaf.shape)} for a tensor of shape "
                f"{tuple(own.shape)}: a point of Y has the shapes that init gives; return those"
            )
    return from_leaves(tensors, like=y)


def check_start(follower: str, y: object) -> None:
    """Checks that the start of a solve is a point that may move.

    Args:
        follower: The name of the follower.
        y: Its start.

    Raises:
        BilevelError: If it is no tensor or dict of tensors, or holds frozen parameters beside
            others, all of which the solve would move.
    """
    if not is_value(y):
        raise BilevelError(
            f"{follower}.init returned {describe(y)}: y is a tensor or a dict of tensors; return "
            "{name: tensor}, without further dicts in it"
        )
    if any(leaf.is_nested for leaf in leaves(y)):
        raise BilevelError(
            f"{follower}.init returned a nested tensor, which has no norms and few operations: pad "
            "the samples to one length, and set what is padded to 0 in project"
        )
    if any(leaf.layout != torch.strided for leaf in leaves(y)):
        raise BilevelError(
            f"{follower}.init returned a sparse tensor, which few operations take: return its "
            "to_dense(), or the values that are to move"
        )
    if isinstance(y, Mapping):
        weights = {n: w.requires_grad for n, w in y.items() if isinstance(w, nn.Parameter)}
        if len({*weights.values()}) > 1:
            frozen = min(weights, key=weights.__getitem__)
            raise BilevelError(
                f"{follower}.init returned {frozen}, which is frozen (requires_grad=False): the "
                "solve would move it too; return {n: p for n, p in network.named_parameters() if "
                "p.requires_grad}, of which functional_call needs no more, or detach them all"
            )


def check_answer(solver: str, y: Any, start: Value | None) -> None:
    """Checks that an answer has the form of the start.

    Args:
        solver: The name of the solver.
        y: Its answer.
        start: What the follower's init gives; None if the solver did not ask for it.

    Raises:
        BilevelError: If it is no tensor or dict of tensors, has other names, or would be broadcast
            silently. Other sizes may differ: an answer may be the whole path, say.
    """
    if not is_value(y) or not (start is None or same_structure(y, start)):
        kind = "a tensor or a dict of tensors" if start is None else describe(start)
        raise BilevelError(
            f"{solver}.answer returned {describe(y)}: y is {kind}, as init gives it; return that"
        )
    if start is None:
        return
    for leaf, own in zip(leaves_like(y, like=start), leaves(start), strict=True):
        single = any(a == 1 != b for a, b in zip(leaf.shape, own.shape, strict=False))
        if leaf.dim() != own.dim() or single:
            raise BilevelError(
                f"{solver}.answer returned shape {tuple(leaf.shape)} where init gives "
                f"{tuple(own.shape)}: it would be broadcast; return it in that form, or let init "
                "give this one"
            )


def explain_not_floating(follower: str, y: Value, error: RuntimeError) -> None:
    """Raises a clearer error if the start has no gradient; does nothing for errors of other kinds.

    Args:
        follower: The name of the follower.
        y: Its start.
        error: What torch raised.

    Raises:
        BilevelError: If some numbers of y are not of floating point.
    """
    kinds = {leaf.dtype for leaf in leaves(y) if not leaf.is_floating_point()}
    if kinds:
        example = "torch.zeros(batch.x.shape)"
        if isinstance(y, Mapping):
            example = "the named_parameters() of a network, without its buffers"
        raise BilevelError(
            f"y, which {follower}.init starts, has numbers of type {kinds.pop()}: it moves along a "
            f"gradient; return floating point, such as {example}, or use an update with "
            "needs_gradient = False"
        ) from error
