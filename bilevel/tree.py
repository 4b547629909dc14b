"""Operations on a follower's variable, which is a tensor or a dict of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

Value = Tensor | dict[str, Tensor]
"""A follower's variable: one tensor, or named tensors (a network's parameters)."""

_V = TypeVar("_V", Tensor, dict[str, Tensor], Value)


def leaves(y: Value) -> list[Tensor]:
    """The tensors of ``y``, in a fixed order.

    Args:
        y: A tensor or a dict of tensors.

    Returns:
        One tensor, or the dict's values.

    Example:
        >>> len(leaves({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}))
        2
    """
    return [y] if isinstance(y, Tensor) else list(y.values())


def leaves_like(y: Value, like: Value) -> list[Tensor]:
    """The tensors of ``y`` in the order of ``leaves(like)``.

    Args:
        y: A tensor or a dict of tensors.
        like: A tree with the same names, in any order.

    Returns:
        One tensor, or the dict's values.

    Example:
        >>> a, b = torch.zeros(1), torch.ones(1)
        >>> leaves_like({"b": b, "a": a}, like={"a": a, "b": b})
        [tensor([0.]), tensor([1.])]
    """
    if isinstance(y, Tensor) or isinstance(like, Tensor):
        return leaves(y)
    return [y[name] for name in like]


def handed(y: Any) -> Any:
    """``y`` for a method of the user's, which may put other tensors under its names.

    Args:
        y: A tensor or a dict of tensors.

    Returns:
        The tensor, or a new dict of the same tensors.

    Example:
        >>> y = {"a": torch.zeros(1)}
        >>> handed(y)["a"] = torch.ones(1)
        >>> y
        {'a': tensor([0.])}
    """
    return dict(y) if isinstance(y, dict) else y


def is_value(y: object) -> TypeGuard[Value]:
    """Whether ``y`` can be a follower's variable.

    Args:
        y: Anything.

    Returns:
        True for a tensor, and for a dict of at least one tensor and nothing else.

    Example:
        >>> is_value({"a": torch.ones(1)}), is_value({"a": {"b": torch.ones(1)}})
        (True, False)
    """
    if isinstance(y, dict):
        return bool(y) and all(isinstance(leaf, Tensor) for leaf in y.values())
    return isinstance(y, Tensor)


def same_structure(y: object, other: Value) -> bool:
    """Whether both are tensors, or dicts with the same keys, in any order.

    Args:
        y: Anything.
        other: A tensor or a dict of tensors.

    Returns:
        True if so.

    Example:
        >>> same_structure({"b": torch.ones(1), "a": torch.ones(1)}, {"a": torch.ones(1)})
        False
    """
    if isinstance(other, Tensor):
        return isinstance(y, Tensor)
    return isinstance(y, dict) and set(y) == set(other)


def from_leaves(tensors: Sequence[Tensor | None], like: _V) -> _V:
    """The inverse of :func:`leaves`.

    Args:
        tensors: One for each of the tensors of ``like``; None stands for zeros.
        like: A tensor or a dict of tensors.

    Returns:
        A tree with the structure of ``like``.

    Example:
        >>> from_leaves([torch.ones(1), None], like={"a": torch.zeros(1), "b": torch.zeros(2)})
        {'a': tensor([1.]), 'b': tensor([0., 0.])}
    """
    filled = [
        torch.zeros_like(leaf) if tensor is None else tensor
        for tensor, leaf in zip(tensors, leaves(like), strict=True)
    ]
    return filled[0] if isinstance(like, Tensor) else dict(zip(like, filled, strict=True))


def tree_map(function: Callable[..., Tensor], y: _V, *others: Value) -> _V:
    """Applies ``function`` to corresponding tensors of ``y`` and ``others``.

    Args:
        function: Takes one tensor of each tree and returns a tensor.
        y: A tensor or a dict of tensors.
        *others: Trees with the same names.

    Returns:
        A tree with the structure of ``y``.

    Example:
        >>> tree_map(torch.add, {"a": torch.ones(2)}, {"a": torch.ones(2)})
        {'a': tensor([2., 2.])}
    """
    if isinstance(y, Tensor):
        return function(y, *others)
    columns = [leaves_like(other, like=y) for other in others]
    return dict(zip(y, map(function, y.values(), *columns), strict=True))


def detach(y: _V) -> _V:
    """``y`` detached from autograd's graph.

    Args:
        y: A tensor or a dict of tensors.

    Returns:
        The same values, sharing memory.
    """
    return tree_map(torch.Tensor.detach, y)


def ravel(y: Value) -> Tensor:
    """All elements of ``y`` as one real vector.

    Args:
        y: A tensor or a dict of tensors, of m elements; a complex one counts as two.

    Returns:
        ``(m,)``, the tensors of a dict one after the other.

    Example:
        >>> ravel({"weight": torch.ones(2, 1), "bias": torch.zeros(1)})
        tensor([1., 1., 0.])
    """
    return torch.cat([as_real(leaf).reshape(-1) for leaf in leaves(y)])


def unravel(vector: Tensor, like: _V) -> _V:
    """The inverse of :func:`ravel`.

    Args:
        vector: ``(m,)``.
        like: A tensor or a dict of tensors, of m elements.

    Returns:
        The elements of ``vector`` in the shapes and types of ``like``.

    Example:
        >>> unravel(torch.arange(3), {"weight": torch.ones(2, 1), "bias": torch.zeros(1)})
        {'weight': tensor([[0.],
                [1.]]), 'bias': tensor([2.])}
    """
    pieces = iter(torch.split(vector, [as_real(leaf).numel() for leaf in leaves(like)]))

    def shaped(leaf: Tensor) -> Tensor:
        piece = next(pieces).view_as(as_real(leaf)).to(as_real(leaf).dtype)
        # Not view_as_complex: a piece may begin at an odd number of the vector.
        return torch.complex(*piece.unbind(-1)) if leaf.is_complex() else piece

    return tree_map(shaped, like)


def as_real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones: a derivative is linear over the reals only.

    Args:
        tensor: A tensor.

    Returns:
        The tensor itself if it is real, else a view, ``(..., 2)``.

    Example:
        >>> as_real(torch.tensor([1 + 2j]))
        tensor([[1., 2.]])
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def requiring_grad(tensor: Tensor) -> Tensor:
    """The tensor, still connected to its graph, as one that a gradient can be taken at.

    Args:
        tensor: A tensor.

    Returns:
        The tensor if it requires a gradient, else a view that does.
    """
    base = tensor._base if tensor.is_leaf else None
    if base is not None and base.requires_grad:  # a view taken under no_grad: none reaches it
        return tensor.detach().requires_grad_()
    return tensor if tensor.requires_grad else tensor.view_as(tensor).requires_grad_()


def norms(y: Value, *, by_sample: bool) -> Tensor:
    """Euclidean norms.

    Args:
        y: A tensor or a dict of tensors.
        by_sample: Whether the tensors have a row per sample.

    Returns:
        One per sample, ``(B,)``, or one over all elements, a scalar.
    """
    if by_sample:
        parts = [vector_norm(leaf[..., None].flatten(1), dim=1) for leaf in leaves(y)]
    else:
        parts = [vector_norm(leaf) for leaf in leaves(y)]
    return vector_norm(torch.stack(parts), dim=0)


def versions(y: Value) -> list[int]:
    """What changes where a tensor of y is changed in place.

    Args:
        y: A tensor or a dict of tensors.

    Returns:
        A number for each tensor.
    """
    return [leaf._version for leaf in leaves(y)]


def largest_difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference between two tensors.

    Args:
        one: A tensor, of any type.
        other: A tensor of the same shape.

    Returns:
        The difference; 0 where they have no elements, 1 between True and False.

    Example:
        >>> largest_difference(torch.tensor([True, True]), torch.tensor([True, False]))
        1.0
    """
    if not one.numel():
        return 0.0
    if one.dtype == torch.bool:
        one, other = one.int(), other.int()
    return float((one - other).abs().max())
