"""Auto-PGD: projected sign-gradient ascent whose step sizes follow from what they have brought."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.robustness.attacks.samples import check_count, check_eps, choose, per_sample
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value, leaves

_MOMENTUM = 0.75  # α of the paper: the share of the new step, the rest is the last one's


class APGD(Solver):
    r"""Auto-PGD of Croce & Hein (2020), in the L∞ norm.

    .. math::
        z &= \Pi_Y(y_k + \eta\,\mathrm{sign}\,\nabla q(y_k)) \\
        y_{k+1} &= \Pi_Y(y_k + \alpha (z - y_k) + (1 - \alpha)(y_k - y_{k-1})), \quad \alpha = 0.75

    Each sample has its own η, from 2ε on. At the checkpoints w_j = ⌈p_j N⌉, with
    p_1 = 0.22 and p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), it is halved and the sample goes
    back to its best point, if since the last checkpoint fewer than ρ of the steps have raised the
    objective, or if neither η nor the best point has changed.

    The objective is the follower's loss, so that one class makes APGD-CE, APGD-DLR and, with
    targets, APGD-T. The start is the follower's too: ``Linf(eps, start=eps)`` for a random one
    (the authors' code stretches its noise until it touches the boundary).

    "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", arXiv 2003.01690, Algorithm 1 and Sec. 3.

    Args:
        eps: ε, the radius of the L∞ ball, in units of y.
        steps: N, the number of steps; a solve takes one gradient more.
        rho: ρ, the share of steps that must have raised the objective.

    Raises:
        BilevelError: If an argument is out of its range.

    Example:
        >>> from bilevel.robustness import Linf, Solved
        >>> from bilevel.robustness.threats.losses import dlr, targeted_dlr
        >>> Solved("APGD-DLR", Linf(0.031, start=0.031, loss=dlr), APGD(0.031), restarts=5)
        Solved('APGD-DLR')
        >>> Solved("APGD-T", Linf(0.031, start=0.031, loss=targeted_dlr), APGD(0.031), targets=9)
        Solved('APGD-T')
    """

    def __init__(self, eps: float, steps: int = 100, rho: float = 0.75) -> None:
        super().__init__()
        if not 0 <= rho <= 1:
            raise BilevelError(f"rho is {rho}: it is a share of the steps; give 0 ≤ rho ≤ 1")
        self.eps = check_eps(eps)
        self.steps = check_count("steps", steps)
        self.rho = rho

    def answer(self, oracle: Oracle) -> Value:
        """The best point that each sample has seen, its start among them."""
        best = before = here = _Point.at(oracle.init(), oracle)
        step = torch.full_like(here.gain, 2 * self.eps)
        kept, best_gain = torch.ones_like(here.gain, dtype=torch.bool), best.gain
        for begin, end in pairwise(_checkpoints(self.steps)):
            rises = torch.zeros_like(here.gain)
            for k in range(begin, end):
                share = _MOMENTUM if k > 0 else 1.0
                before, here = here, _Point.at(_move(oracle, here, before, step, share), oracle)
                best = here.where(here.gain > best.gain, best)
                rises += here.gain > before.gain
            stuck = (rises < self.rho * (end - begin)) | (kept & (best.gain == best_gain))
            step = choose(stuck, step / 2, step)
            here = best.where(stuck, here)
            kept, best_gain = ~stuck, best.gain
        return best.y

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"eps={self.eps:g}, steps={self.steps}, rho={self.rho:g}"


class _Point(NamedTuple):
    """Where each sample is, and what the oracle says there."""

    y: Tensor
    gain: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, y: Value, oracle: Oracle) -> _Point:
        gain, slope = oracle.gain_and_gradient(y)
        (point,), (gradient,) = leaves(y), leaves(slope)
        return cls(point, gain, gradient)

    def where(self, chosen: Tensor, other: _Point) -> _Point:
        """This point for the chosen samples, the other one for the rest."""
        return _Point._make(map(partial(choose, chosen), self, other))


def _move(oracle: Oracle, here: _Point, before: _Point, step: Tensor, share: float) -> Value:
    """The next point: a sign step, mixed with the last step."""
    y = here.y
    (along,) = leaves(oracle.project(y + per_sample(step, y) * here.gradient.sign()))
    return oracle.project(y + share * (along - y) + (1 - share) * (y - before.y))


def _checkpoints(steps: int) -> list[int]:
    """0, the checkpoints w_j and the last step; computed in hundredths, which are exact."""
    shares, gap = [0], 22
    while shares[-1] < 100:
        shares.append(shares[-1] + gap)
        gap = max(gap - 3, 6)
    return sorted({min(-(-share * steps // 100), steps) for share in shares})
