"""The points that the Square Attack proposes, in L∞ and in L2.

first       the first proposal: stripes in L∞, a grid of bumps in L2
windowed    the others: the best point, changed in a window of each sample
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.robustness.attacks.samples import choose, per_sample
from bilevel.solvers import Oracle
from bilevel.tree import leaves


class Proposals(ABC):
    """The proposals within a ball.

    Args:
        eps: ε of the ball.
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps

    @abstractmethod
    def first(self, like: Tensor) -> Tensor:
        """The first proposal, before its projection.

        Args:
            like: ``(B, C, H, W)``.

        Returns:
            Perturbations of that shape.
        """

    @abstractmethod
    def windowed(self, oracle: Oracle, best: Tensor, share: float) -> Tensor:
        """The best points with a change in a window.

        Args:
            oracle: The problem, which projects.
            best: The best points so far, ``(B, C, H, W)``.
            share: p, the share of the image that the window takes.

        Returns:
            New points of Y.
        """


class LinfProposals(Proposals):
    """Vertical stripes of ±ε, then windows of ±ε (Algorithm 2)."""

    def first(self, like: Tensor) -> Tensor:
        """±ε, drawn for each channel and column."""
        samples, channels, _, width = like.shape
        return self.eps * _signs(like, samples, channels, 1, width).expand_as(like)

    def windowed(self, oracle: Oracle, best: Tensor, share: float) -> Tensor:
        """±ε in a window; another point than the best, if that is possible."""
        samples, channels, height, width = best.shape
        window = _Window.draw(best, _side(height, width, share)).mask
        change = self.eps * _signs(best, samples, channels, 1, 1)
        proposed = (oracle.project(torch.where(window, z, best)) for z in (change, -change))
        (point,), (opposite,) = map(leaves, proposed)
        return choose((point == best).flatten(1).all(1), opposite, point)


class L2Proposals(Proposals):
    """A grid of bumps, then the mass of two windows gathered in one of them (Algorithm 3)."""

    def first(self, like: Tensor) -> Tensor:
        """Bumps in a 5 × 5 grid, their signs drawn for each channel; of norm ε together."""
        samples, channels, height, width = like.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        signs = _signs(like, samples, channels, rows, columns)
        grid = torch.kron(signs, _bump(side, like)[None, None])
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        delta = torch.zeros_like(like)
        delta[..., top : top + rows * side, left : left + columns * side] = grid
        return self.eps * F.normalize(delta.flatten(1), dim=1).view_as(delta)

    def windowed(self, oracle: Oracle, best: Tensor, share: float) -> Tensor:
        """The first window's change has a bump added, and takes the second window's mass too."""
        samples, channels, height, width = best.shape
        side = max(_side(height, width, share), 3) // 2 * 2 + 1
        side = min(side, height, width)
        window, emptied = _Window.draw(best, side), _Window.draw(best, side).mask
        bump = _bump(side, best)
        drawn = window.filled(bump, bump.T, _signs(best, samples) > 0)
        old = torch.where(window.mask, best, 0)
        new = drawn * _signs(best, samples, channels, 1, 1) + _unit(old)
        # What the two windows hold, and each channel's share of what the ball still allows.
        squares = best.square()
        held = torch.where(window.mask | emptied, squares, 0).sum((2, 3), keepdim=True)
        unused = F.relu(self.eps**2 - squares.flatten(1).sum(1)) / channels
        new = _unit(new) * (held + per_sample(unused, best)).sqrt()
        delta = torch.where(window.mask, new, torch.where(emptied, 0, best))
        (point,) = leaves(oracle.project(delta))
        return point


class _Window:
    """A square window for each sample, with its upper left corner."""

    def __init__(self, rows: Tensor, columns: Tensor, side: int) -> None:
        self.rows = rows  # distance from the corner, ``(B, H, 1)``
        self.columns = columns  # likewise, ``(B, 1, W)``
        self.side = side
        inside = [(place >= 0) & (place < side) for place in (rows, columns)]
        self.mask = (inside[0] & inside[1]).unsqueeze(1)  # ``(B, 1, H, W)``

    @classmethod
    def draw(cls, like: Tensor, side: int) -> _Window:
        """Windows at uniform positions."""
        samples, _, height, width = like.shape
        distances = []
        for size in (height, width):
            corner = torch.randint(size - side + 1, (samples, 1), device=like.device)
            distances.append(torch.arange(size, device=like.device) - corner)
        return cls(distances[0].unsqueeze(2), distances[1].unsqueeze(1), side)

    def filled(self, one: Tensor, other: Tensor, first: Tensor) -> Tensor:
        """One of two ``(side, side)`` patterns in the windows, ``(B, 1, H, W)``, zero outside."""
        at = [place.clamp(0, self.side - 1) for place in (self.rows, self.columns)]
        pattern = choose(first, one[at[0], at[1]], other[at[0], at[1]])
        return pattern.unsqueeze(1) * self.mask


def _side(height: int, width: int, share: float) -> int:
    """The side of a window that takes a share of the image."""
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _signs(like: Tensor, *shape: int) -> Tensor:
    """−1 or 1, with equal probability."""
    return torch.randint(2, shape, device=like.device).to(like) * 2 - 1


def _unit(delta: Tensor) -> Tensor:
    """Each channel divided by its norm; zero stays zero."""
    return F.normalize(delta.flatten(2), dim=2).view_as(delta)


def _bump(side: int, like: Tensor) -> Tensor:
    """η of the paper, ``(side, side)``: a positive peak above a negative one, of norm 1."""
    upper, lower = side // 2, side - side // 2
    bump = torch.cat([_peak(upper, side, like), -_peak(lower, side, like)])
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
