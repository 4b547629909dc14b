"""The bounds of the data: the box that x + δ stays in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilevel.errors import BilevelError, describe
from bilevel.experiment.settings import shown

Bounds = tuple[float | Tensor, float | Tensor]
"""The lowest and the highest value of the data: numbers, or tensors that broadcast over a sample,
such as one value per feature."""

PIXELS: Bounds = (0.0, 1.0)
"""The bounds of images."""


def checked_bounds(bounds: Bounds | None) -> Bounds | None:
    """Checks bounds.

    Args:
        bounds: The lowest and the highest value; None for data without bounds.

    Returns:
        Two floats, or two tensors if one of the two is a tensor; or None.

    Raises:
        BilevelError: If they are anything else, or out of order.

    Example:
        >>> checked_bounds((-1000, 3000))
        (-1000.0, 3000.0)
    """
    if bounds is None:
        return None
    try:
        low, high = bounds
        if any(isinstance(bound, Tensor) for bound in bounds):
            low, high = _as_tensors(low, high)
            ordered = bool((low <= high).all())
        else:
            low, high = float(low), float(high)
            ordered = low <= high
    except (TypeError, ValueError, RuntimeError) as error:
        raise BilevelError(
            f"bounds is {describe(bounds)}: it is the lowest and the highest value of the data; "
            "give (low, high), numbers or tensors that broadcast over a sample, or None"
        ) from error
    if not ordered:
        raise BilevelError(
            "bounds are out of order or NaN: no value lies between them; give (low, high) with "
            "low ≤ high"
        )
    return low, high


def _as_tensors(*bounds: float | Tensor) -> list[Tensor]:
    """Bounds as tensors of their own, on one device, of a type that holds what each of them is."""
    given = [bound for bound in bounds if isinstance(bound, Tensor)]
    dtype = torch.get_default_dtype()  # at least: half precision has no 4095
    for bound in given:
        dtype = torch.promote_types(dtype, bound.dtype)
    tensors = (torch.as_tensor(bound, dtype=dtype) for bound in bounds)
    return [tensor.to(given[0].device).detach().clone() for tensor in tensors]


def equal_bounds(bounds: Bounds | None, others: Bounds) -> bool:
    """Whether bounds are two numbers, namely the given ones.

    Args:
        bounds: As :func:`checked_bounds` returns them.
        others: Two numbers.

    Returns:
        False for tensors and None.
    """
    if bounds is None or any(isinstance(bound, Tensor) for bound in bounds):
        return False
    return bounds == others


def interval(bounds: Bounds | None) -> str:
    """Bounds in print.

    Args:
        bounds: As :func:`checked_bounds` returns them.

    Returns:
        One expression.

    Example:
        >>> interval((0.0, 1.0)), interval(None)
        ('[0, 1]', 'None')
    """
    return "None" if bounds is None else f"[{', '.join(map(_short, bounds))}]"


def _short(bound: float | Tensor) -> str:
    return shown(bound) if isinstance(bound, Tensor) else f"{bound:g}"


def width(bounds: Bounds | None) -> float:
    """The largest change that bounds allow.

    Args:
        bounds: As :func:`checked_bounds` returns them.

    Returns:
        The largest difference of the highest and the lowest value; ∞ without bounds.

    Example:
        >>> width(checked_bounds((0.0, torch.tensor([1.0, 5.0]))))
        5.0
    """
    if bounds is None:
        return math.inf
    low, high = bounds
    gap = high - low
    return float(gap.max() if isinstance(gap, Tensor) else gap)


def clipped(values: Tensor, bounds: Bounds | None) -> Tensor:
    """The nearest values within bounds.

    Args:
        values: ``(B, ...)``.
        bounds: As :func:`checked_bounds` returns them.

    Returns:
        ``(B, ...)``.

    Example:
        >>> clipped(torch.tensor([[-2.0, 0.3, 7.0]]), (0.0, 1.0))
        tensor([[0.0000, 0.3000, 1.0000]])
    """
    if bounds is None:
        return values
    low, high = bounds
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return values.clamp(low.to(values), high.to(values))
    return values.clamp(float(low), float(high))


def rounding(data: Tensor) -> Tensor:
    """How far rounding may take adversarial data out of the threat model.

    Args:
        data: The clean data, ``(B, ...)``.

    Returns:
        For each value a few units in the last place; of values below 1 as of 1.

    Example:
        >>> rounding(torch.tensor([0.5, 3000.0]))
        tensor([1.0000e-06, 3.0000e-03])
    """
    return max(1e-6, torch.finfo(data.dtype).eps) * data.abs().clamp(min=1)
