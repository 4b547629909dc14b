"""The points that the Square Attack proposes, in L∞ and in L2.

first(like)                      the first proposal, before its projection: a change like the
                                 images, (B, C, H, W)
windowed(oracle, best, share)    the others, points of Y: the best ones so far, changed in a window
                                 that takes a share p of each image
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.robustness.attacks.samples import choose
from bilevel.robustness.data.batches import per_sample
from bilevel.solvers import Oracle
from bilevel.tree import leaves


@dataclass(frozen=True)
class LinfProposals:
    """Vertical stripes of ±ε, then windows of ±ε (Algorithm 2)."""

    eps: float

    def first(self, like: Tensor) -> Tensor:
        """±ε, drawn for each channel and column."""
        samples, channels, _, width = like.shape
        return self.eps * _signs(like, samples, channels, 1, width).expand_as(like)

    def windowed(self, oracle: Oracle, best: Tensor, share: float) -> Tensor:
        """±ε in a window; another point than the best, if that is possible."""
        samples, channels, height, width = best.shape
        window = _Window.draw(best, _size(height, width, share)).mask
        change = self.eps * _signs(best, samples, channels, 1, 1)
        proposed = (oracle.project(torch.where(window, z, best)) for z in (change, -change))
        (point,), (opposite,) = map(leaves, proposed)
        return choose((point == best).flatten(1).all(1), opposite, point)


@dataclass(frozen=True)
class L2Proposals:
    """A grid of bumps, then the mass of two windows gathered in one of them (Algorithm 3)."""

    eps: float

    def first(self, like: Tensor) -> Tensor:
        """Bumps in a 5 × 5 grid, their signs drawn for each channel; of norm ε together."""
        samples, channels, height, width = like.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        signs = _signs(like, samples, channels, rows, columns)
        grid = torch.kron(signs, _bump(side, side, like)[None, None])
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        delta = torch.zeros_like(like)
        delta[..., top : top + rows * side, left : left + columns * side] = grid
        return self.eps * F.normalize(delta.flatten(1), dim=1).view_as(delta)

    def windowed(self, oracle: Oracle, best: Tensor, share: float) -> Tensor:
        """The first window's change has a bump added, and takes the second window's mass too."""
        samples, channels, height, width = best.shape
        rows, columns = (max(size, 3) // 2 * 2 + 1 for size in _size(height, width, share))
        rows, columns = min(rows, height), min(columns, width)
        window, emptied = (_Window.draw(best, (rows, columns)) for _ in range(2))
        upright, turned = _bump(rows, columns, best), _bump(columns, rows, best).T
        drawn = window.filled(upright, turned, _signs(best, samples) > 0)
        old = torch.where(window.mask, best, 0)
        new = drawn * _signs(best, samples, channels, 1, 1) + _unit(old)
        # What the two windows hold, and each channel's share of what the ball still allows.
        squares = best.square()
        held = torch.where(window.mask | emptied.mask, squares, 0).sum((2, 3), keepdim=True)
        unused = F.relu(self.eps**2 - squares.flatten(1).sum(1)) / channels
        new = _unit(new) * (held + per_sample(unused, best)).sqrt()
        delta = torch.where(window.mask, new, torch.where(emptied.mask, 0, best))
        (point,) = leaves(oracle.project(delta))
        return point


class _Window:
    """A window for each sample, with its upper left corner."""

    def __init__(self, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> None:
        self.places = rows, columns  # distances from the corner, ``(B, H, 1)`` and ``(B, 1, W)``
        self.size = size
        inside = [(at >= 0) & (at < end) for at, end in zip(self.places, size, strict=True)]
        self.mask = (inside[0] & inside[1]).unsqueeze(1)  # ``(B, 1, H, W)``

    @classmethod
    def draw(cls, like: Tensor, size: tuple[int, int]) -> _Window:
        """Windows of a height and width, at uniform positions."""
        distances = []
        for whole, part in zip(like.shape[2:], size, strict=True):
            corner = torch.randint(whole - part + 1, (len(like), 1), device=like.device)
            distances.append(torch.arange(whole, device=like.device) - corner)
        return cls(distances[0].unsqueeze(2), distances[1].unsqueeze(1), size)

    def filled(self, one: Tensor, other: Tensor, first: Tensor) -> Tensor:
        """One of two patterns of that size in the windows, ``(B, 1, H, W)``, zero outside."""
        rows, columns = (
            at.clamp(0, end - 1) for at, end in zip(self.places, self.size, strict=True)
        )
        pattern = choose(first, one[rows, columns], other[rows, columns])
        return pattern.unsqueeze(1) * self.mask


def _size(height: int, width: int, share: float) -> tuple[int, int]:
    """Height and width of a window that takes a share of the image: a square if one fits."""
    side = max(round(math.sqrt(share * height * width)), 1)
    if side > height:
        return height, round(share * width)
    if side > width:
        return round(share * height), width
    return side, side


def _signs(like: Tensor, *shape: int) -> Tensor:
    """−1 or 1, with equal probability."""
    return torch.randint(2, shape, device=like.device).to(like) * 2 - 1


def _unit(delta: Tensor) -> Tensor:
    """Each channel divided by its norm; zero stays zero."""
    return F.normalize(delta.flatten(2), dim=2).view_as(delta)


def _bump(height: int, width: int, like: Tensor) -> Tensor:
    """η of the paper, ``(height, width)``: a positive peak above a negative one, of norm 1."""
    upper, lower = height // 2, height - height // 2
    bump = torch.cat([_peak(upper, width, like), -_peak(lower, width, like)])
    return F.normalize(bump.flatten(), dim=0).view_as(bump)


def _peak(height: int, width: int, like: Tensor) -> Tensor:
    """Concentric squares that add 1/r² each, of radius r from 1 on; of norm 1."""
    if not height:
        return like.new_zeros(0, width)
    terms = torch.arange(1, max(height, width) // 2 + 2, device=like.device).to(like) ** -2
    tails = terms.flip(0).cumsum(0).flip(0)
    rows, columns = (
        (torch.arange(size, device=like.device) - size // 2).abs() for size in (height, width)
    )
    peak = tails[torch.maximum(rows.unsqueeze(1), columns)]
    return F.normalize(peak.flatten(), dim=0).view_as(peak)
