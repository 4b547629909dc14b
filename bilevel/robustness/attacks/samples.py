"""Operations on points and batches, sample by sample, that the attacks share."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bilevel.robustness.data.batches import Batch, per_sample
from bilevel.robustness.threats.losses import Targeted
from bilevel.solvers import Oracle

Tensors = TypeVar("Tensors", bound=NamedTuple)
"""A named tuple of tensors with a row per sample."""


def choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``torch.where`` with one condition a sample; it does not wait for the device.

    Args:
        mask: Which samples are taken from ``yes``, ``(B,)`` bool.
        yes: ``(B, ...)``.
        no: ``(B, ...)``.

    Returns:
        ``(B, ...)``.

    Example:
        >>> choose(torch.tensor([True, False]), torch.ones(2, 3), torch.zeros(2, 3))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """
    return torch.where(per_sample(mask, yes), yes, no)


def choose_all(mask: Tensor, yes: Tensors, no: Tensors) -> Tensors:
    """:func:`choose` for each tensor of two named tuples."""
    return type(yes)._make(choose(mask, one, other) for one, other in zip(yes, no, strict=True))


def better(oracle: Oracle, point: Tensor, best: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the one of two points with the larger gain.

    Args:
        oracle: The problem.
        point: A new point, ``(B, ...)``; its gain is evaluated.
        best: The point so far, ``(B, ...)``.
        gain: Its gain, ``(B,)``.

    Returns:
        The better points and their gains; ``best`` where they are equal.
    """
    value = oracle.gain(point)
    improves = value > gain
    return choose(improves, point, best), choose(improves, value, gain)


def replaced(batch: Any, **fields: Tensor) -> Any:
    """A batch with other values in some fields.

    Args:
        batch: A named tuple; of another type only the images and labels are kept.
        **fields: The fields; those that it lacks are added.

    Returns:
        A named tuple, of the same type if no field is added, and :class:`Targeted` if targets are
        added to a :class:`Batch`.

    Example:
        >>> replaced(Batch(torch.zeros(1), torch.ones(1)), target=torch.ones(1))._fields
        ('x', 'y', 'target')
    """
    if not hasattr(batch, "_fields"):
        batch = Batch(batch.x, batch.y)
    if fields.keys() <= set(batch._fields):
        return batch._replace(**fields)
    if type(batch) is Batch and fields.keys() == {"target"}:
        return Targeted(*batch, **fields)
    values = batch._asdict() | fields
    return namedtuple(type(batch).__name__, values)(**values)
