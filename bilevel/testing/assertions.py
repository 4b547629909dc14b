"""What the checks of problems, updates and solvers require of points."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bilevel.errors import describe
from bilevel.solvers import Oracle
from bilevel.testing.requirement import require
from bilevel.tree import Value, is_value, largest_difference, leaves, leaves_like, ravel, tree_map


def assert_nearest(oracle: Oracle, far: Value, inside: Value, tolerance: float) -> None:
    """Checks that no other point of Y that is tried is nearer to a point than its projection.

    Args:
        oracle: Evaluates the problem.
        far: The point.
        inside: Its projection.
        tolerance: How much nearer another may be, in units of y.

    Raises:
        AssertionError: If one is.
    """
    distance = _distance(far, inside)
    rounding = max(torch.finfo(leaf.dtype).eps for leaf in leaves(far))
    for beside in _around(inside, far):
        other = _distance(far, oracle.project(beside))
        require(
            distance <= other + max(tolerance, 2 * rounding) * (1 + other),
            f"{type(oracle.follower).__name__}.project gives a point at distance {distance:.5g} "
            f"where Y has one at {other:.5g}: it must give the nearest one (or say nearest=False, "
            "if that is meant)",
        )


def _around(inside: Value, far: Value) -> Iterator[Value]:
    """Points on the way to ``far``, and at random."""
    for size in (0.01, 0.1, 1.0):
        yield tree_map(partial(torch.lerp, weight=size / 2), inside, far)
        for _ in range(4):
            noise = tree_map(torch.randn_like, inside)
            yield tree_map(partial(torch.add, alpha=size), inside, noise)


def _distance(one: Value, other: Value) -> float:
    return float(ravel(tree_map(torch.sub, one, other)).double().norm())


def assert_unchanged(oracle: Oracle, y: Value) -> None:
    """Checks that evaluating a problem does not move y.

    Args:
        oracle: Evaluates the problem.
        y: A point of Y.

    Raises:
        AssertionError: If it does.
    """
    for method in (oracle.gain, oracle.context):
        point = tree_map(Tensor.clone, y)
        with torch.no_grad():
            method(point)
        require(
            all(map(torch.equal, leaves(point), leaves(y))),
            f"{type(oracle.follower).__name__} changes y in place in objective or context: "
            "autograd may not see it, and solvers go on from there; compute a new tensor, or "
            "constrain y in project",
        )


def assert_samples_independent(oracle: Oracle, far: Value, inside: Value, tolerance: float) -> None:
    """Checks that samples that have a value each do not depend on each other's y.

    Args:
        oracle: Evaluates the problem.
        far: A point outside of Y.
        inside: Its projection.
        tolerance: The largest distance of a projected sample from where it is beside others.

    Raises:
        AssertionError: If the objective or the projection of a sample depends on another's y.
    """
    name = type(oracle.follower).__name__
    point = tree_map(lambda leaf: leaf.detach().requires_grad_(), inside)
    gain = oracle.gain(point)
    if gain.dim() == 0:
        return
    message = (
        f"{name}.objective of a sample depends on another sample's y: each sample's value must "
        "depend on its own y only, also through detach(); if the batch shares y or its samples are "
        "compared, return a scalar"
    )
    numbers = torch.arange(len(gain), device=gain.device)
    for bit in range(len(gain).bit_length()):  # any two samples differ in a bit of their number
        for chosen in ((numbers >> bit) % 2 == 1, (numbers >> bit) % 2 == 0):
            grads = torch.autograd.grad(
                gain, leaves(point), chosen.to(gain), retain_graph=True, materialize_grads=True
            )
            require(not any(grad[~chosen].any() for grad in grads), message)
            moved = oracle.project(tree_map(partial(_replaced, chosen), far))
            mixed = tree_map(partial(_rows, chosen), moved, inside)
            require(not _differ(oracle, inside, mixed, ~chosen), message)
            assert_close(
                tree_map(lambda leaf, own=chosen: leaf[~own], moved),
                tree_map(lambda leaf, own=chosen: leaf[~own], inside),
                tolerance,
                f"{name}.project moves a sample elsewhere where another's y differs: give each "
                "sample a set of its own (norms over dim=1 and the next), or return a scalar "
                "objective if the samples share a constraint",
            )


@torch.random.fork_rng()
@torch.no_grad()
def _differ(oracle: Oracle, one: Value, other: Value, chosen: Tensor) -> bool:
    """Whether chosen samples have other values at another point, by more than rounding."""

    def values(y: Value) -> Tensor:
        torch.manual_seed(0)  # of an objective with noise
        return oracle.gain(y)

    (before, after), again = ([values(one), values(other)] for _ in range(2))
    change = (after - before)[chosen]
    if not torch.equal(change, (again[1] - again[0])[chosen]):
        return False  # its noise is not torch's: nothing to compare
    rounding = torch.finfo(before.dtype).eps ** 0.5 * before.abs().max()
    return bool((change.abs() > rounding).any())


def _replaced(chosen: Tensor, leaf: Tensor) -> Tensor:
    """The leaf with other numbers, and larger ones, in the rows that are chosen."""
    return _rows(chosen, 3 * leaf.abs().mean() * torch.randn_like(leaf), leaf)


def _rows(chosen: Tensor, leaf: Tensor, other: Tensor) -> Tensor:
    """The chosen rows of one tensor, and all else of another."""
    return torch.where(chosen.view(-1, *[1] * (leaf.dim() - 1)), leaf, other)


def beyond(oracle: Oracle, start: Value, tolerance: float) -> Value:
    """A random point outside of Y, which may be large.

    Args:
        oracle: Evaluates the problem.
        start: A point of Y, around which it lies.
        tolerance: The distance up to which a projected point has not moved.

    Returns:
        The point; one near the start if none is found, as where Y is the whole space.
    """
    points = [
        tree_map(partial(torch.add, alpha=size), start, tree_map(torch.randn_like, start))
        for size in (1, 1e2, 1e4)
    ]
    for point in points:
        inside = oracle.project(tree_map(Tensor.clone, point))
        assert_same_structure(inside, start, f"{type(oracle.follower).__name__}.project")
        pairs = zip(leaves_like(inside, point), leaves(point), strict=True)
        if any(largest_difference(*pair) > tolerance for pair in pairs):
            return point
    return points[0]


def assert_all_read(oracle: Oracle, inside: Value) -> None:
    """Checks that the objective reads all tensors of y.

    Args:
        oracle: Evaluates the problem.
        inside: A point of Y.

    Raises:
        AssertionError: If it does not, as where ``functional_call`` ignores a misspelt name.
    """
    point = tree_map(lambda leaf: leaf.detach().requires_grad_(), inside)
    gain = oracle.gain(point).sum()
    slopes = torch.autograd.grad(gain, leaves(point), allow_unused=True)
    names = point if isinstance(point, dict) else ("y",)
    unread = [name for name, slope in zip(names, slopes, strict=True) if slope is None]
    require(
        not unread,
        f"{type(oracle.follower).__name__}.objective does not depend on {', '.join(unread)}: no "
        "step would move it; correct the name, or let init leave it out",
    )


def assert_moving(oracle: Oracle, start: Value, inside: Value) -> None:
    """Checks that steps along the gradient can leave the start.

    Args:
        oracle: Evaluates the problem.
        start: The start.
        inside: Another point of Y.

    Raises:
        AssertionError: If the gradient is zero there, and the other point is better.
    """
    if any(leaf.any() for leaf in leaves(oracle.gradient(start))):
        return
    # Twice, of an objective that draws noise.
    better = [oracle.gain(inside).mean() > oracle.gain(start).mean() for _ in range(2)]
    require(
        not all(better),
        f"{type(oracle.follower).__name__}.objective has the gradient 0 in y where init starts, "
        "and a random point of Y is better: no step along the gradient leaves that start; draw a "
        "random one",
    )


def assert_same_structure(value: Value, like: Value, name: str) -> None:
    """Checks that a point has the form of y.

    Args:
        value: The point.
        like: y.
        name: What gave it.

    Raises:
        AssertionError: If it has not.
    """
    require(
        is_value(value),
        f"{name} gives {describe(value)} where y is a tensor or a dict of tensors",
    )
    require(
        isinstance(value, dict) == isinstance(like, dict),
        f"{name} gives a {type(value).__name__} where y is a {type(like).__name__}",
    )
    if isinstance(value, dict) and isinstance(like, dict):
        require(value.keys() == like.keys(), f"{name} gives {[*value]} where y has {[*like]}")
    forms = [
        [(leaf.shape, leaf.dtype, leaf.device) for leaf in tensors]
        for tensors in (leaves_like(value, like), leaves(like))
    ]
    require(forms[0] == forms[1], f"{name} gives {forms[0]} where y is {forms[1]}")


def assert_close(value: Value, like: Value, tolerance: float, message: str) -> None:
    """Checks that two points are the same.

    Args:
        value: One point.
        like: The other.
        tolerance: The largest difference, in units of y; 0 for none, else rounding is allowed too.
        message: What is violated otherwise.

    Raises:
        AssertionError: If they are not.
    """
    for leaf, other in zip(leaves_like(value, like), leaves(like), strict=True):
        distance = largest_difference(leaf.detach(), other.detach())
        rounding = torch.finfo(other.dtype).eps if other.is_floating_point() else 0.0
        size = float(other.abs().max()) if rounding and other.numel() else 1.0
        allowed = tolerance and max(tolerance, 2 * rounding * max(1.0, size))
        require(distance <= allowed, f"{message} (by {distance:.3g})")
