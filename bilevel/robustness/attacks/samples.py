"""What the attacks share: samples at stages of their own in one tensor, and checks of arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilevel.errors import BilevelError


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """One value a sample, in a shape that broadcasts over each sample's tensor.

    Args:
        values: ``(B,)``.
        like: ``(B, ...)``.

    Returns:
        ``(B, 1, ...)``, of as many dimensions as ``like``.

    Example:
        >>> per_sample(torch.ones(2), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 1, 1, 1])
    """
    return values.view(-1, *(1,) * (like.dim() - 1))


def choose(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Sample by sample one tensor or the other, without a look at the device.

    Args:
        chosen: Which samples are those of ``yes``, ``(B,)`` bool.
        yes: ``(B, ...)``.
        no: ``(B, ...)``.

    Returns:
        ``(B, ...)``.

    Example:
        >>> choose(torch.tensor([True, False]), torch.ones(2, 3), torch.zeros(2, 3))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """
    return torch.where(per_sample(chosen, yes), yes, no)


def check_eps(eps: float) -> float:
    """The ε of an attack, which must be finite and not negative.

    Args:
        eps: In units of the perturbation.

    Returns:
        The same number.

    Raises:
        BilevelError: If it is no radius.
    """
    if not 0 <= eps < math.inf:
        raise BilevelError(
            f"eps is {eps}: it is the follower's ε, a number from 0 on; the paper's is 0.031"
        )
    return eps


def check_count(name: str, count: int) -> int:
    """How often an attack does something, which must be once at least.

    Args:
        name: What the caller calls it.
        count: The number to check.

    Returns:
        The number.

    Raises:
        BilevelError: If it is less than 1 or not whole.
    """
    if not isinstance(count, int) or count < 1:
        raise BilevelError(f"{name} is {count!r}: an attack needs one at least; give 1, 2, …")
    return count
