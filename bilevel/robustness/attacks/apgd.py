"""Auto-PGD: projected gradient ascent with momentum and an adaptive step size."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem
from bilevel.robustness.attacks.checks import check_gain
from bilevel.robustness.attacks.samples import choose, choose_all
from bilevel.robustness.data.batches import per_sample
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value, leaves

_ALPHA = 0.75  # weight of the new step; the previous one has 1 − α


class APGD(Solver):
    r"""Auto-PGD of Croce & Hein (2020), in the follower's norm.

    .. math::
        z &= \Pi_Y(y_k + \eta\,d(\nabla q(y_k))) \\
        y_{k+1} &= \Pi_Y(y_k + \alpha (z - y_k) + (1 - \alpha)(y_k - y_{k-1})), \quad \alpha = 0.75

    d(g) is the unit step of the norm: sign(g) in L∞, g / ‖g‖₂ in L2, and in L1 the signs of a few
    large slopes, whose number Croce & Hein (2021) adapt. Each sample has its own η, initially twice
    the follower's ε. At the checkpoints w_j = ⌈p_j N⌉, with p_1 = 0.22 and
    p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), η is halved and the sample restarts from its
    best point if, since the last checkpoint, less than a fraction ρ of the steps increased the
    objective, or neither η nor the best objective changed.

    The objective is the follower's loss: the same class gives APGD-CE, APGD-DLR and, with targets,
    APGD-T. So is the start: ``Linf(eps, start=eps)`` for a random one (the authors' code scales
    the noise so that it touches the boundary).

    "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", arXiv 2003.01690, Algorithm 1 and Sec. 3.

    Args:
        steps: N, the number of steps; a solve takes N + 1 gradients.
        rho: ρ, the fraction of steps that must increase the objective for η to be kept.

    Raises:
        BilevelError: If an argument is out of its range; in the solve, if the threat model is no
            :class:`~bilevel.robustness.Perturbation`, or its loss is one number for all images.

    Example:
        >>> from bilevel.robustness import Linf, SolverAttack
        >>> from bilevel.robustness.threats.losses import dlr, targeted_dlr
        >>> SolverAttack("APGD-DLR", Linf(0.031, start=0.031, loss=dlr), APGD(), restarts=5)
        SolverAttack('APGD-DLR')
        >>> SolverAttack("APGD-T", Linf(0.031, start=0.031, loss=targeted_dlr), APGD(), targets=9)
        SolverAttack('APGD-T')
    """

    def __init__(self, *, steps: int = 100, rho: float = 0.75) -> None:
        super().__init__()
        if not 0 <= rho <= 1:
            raise BilevelError(f"rho is {rho}: it is a fraction of the steps; give 0 ≤ rho ≤ 1")
        self.steps = count("steps", steps)
        self.rho = rho

    def check(self, follower: FollowerProblem) -> None:
        """Refuses a threat model that is no ball, to whose ε the steps are scaled."""
        if not isinstance(follower, Perturbation):
            raise BilevelError(
                f"APGD was given {type(follower).__name__}: its steps are scaled to the ε of a "
                "ball; give Linf, L2, L1 or a subclass, or attack with pgm(step, steps)"
            )

    def answer(self, oracle: Oracle) -> Value:
        """The best point that each sample has visited, including the start."""
        best = previous = current = started = _Point.at(oracle.init(), oracle)
        check_gain(best.gain, best.y, oracle.batch)
        threat: Perturbation = oracle.follower
        unit = threat.eps or 1.0  # in L1 a step is spread by its length
        rule = threat.ascent(unit)
        eta = torch.full_like(current.gain, 2 * threat.eps / unit)
        kept, best_gain = torch.ones_like(current.gain, dtype=torch.bool), best.gain
        for begin, end in pairwise(_checkpoints(self.steps)):
            increases = torch.zeros_like(current.gain)
            for k in range(begin, end):
                alpha = _ALPHA if k > 0 else 1.0
                nowhere, context = torch.zeros_like(current.y), oracle.context(current.y)
                direction, _ = rule(nowhere, current.gradient, context, None)
                y = _next(oracle, current, previous, per_sample(eta, direction) * direction, alpha)
                previous, current = current, _Point.at(y, oracle)
                best = choose_all(current.gain > best.gain, current, best)
                increases += current.gain > previous.gain
            halve = (increases < self.rho * (end - begin)) | (kept & (best.gain == best_gain))
            eta = choose(halve, eta / 2, eta)
            current = choose_all(halve, best, current)
            kept, best_gain = ~halve, best.gain
        _check_together(oracle, best, started)
        return best.y

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"steps={self.steps}, rho={self.rho}"


class _Point(NamedTuple):
    """A point for each sample, with its objective and gradient."""

    y: Tensor
    gain: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, y: Value, oracle: Oracle) -> _Point:
        gain, gradients = oracle.gain_and_gradient(y)
        (point,), (gradient,) = leaves(y), leaves(gradients)
        return cls(point, gain, gradient)


def _check_together(oracle: Oracle, best: _Point, started: _Point) -> None:
    """Warns if the best points of all samples, of different iterations, are not as good at once.

    In evaluations, which take no gradients of parameters: it waits for the device.
    """
    if torch.is_grad_enabled() or len(best.y) < 2:
        return
    once, again = oracle.gain(best.y), oracle.gain(best.y)
    lost, noise = (best.gain - once).mean(), (once - again).abs().mean()
    rounding = 1e-2 * best.gain.abs().mean()  # kernels without gradients may be others
    if lost > 0.05 * (best.gain - started.gain).mean() + 10 * noise + rounding:
        warnings.warn(
            f"APGD: {type(oracle.follower).__name__}.objective of a sample depends on the others "
            "(a graph, batch normalisation in training mode), and the best points of each are "
            "worse together: give one y for all, (1, …), with an objective of shape (1,), or "
            "attack with pgm(step, steps)",
            stacklevel=2,
        )


def _next(oracle: Oracle, current: _Point, previous: _Point, move: Tensor, alpha: float) -> Value:
    """y_{k+1}: the projected step z, with momentum."""
    y = current.y
    (z,) = leaves(oracle.project(y + move.to(y.dtype)))  # η is float32 at least, y may be half
    return oracle.project(y + alpha * (z - y) + (1 - alpha) * (y - previous.y))


def _checkpoints(steps: int) -> list[int]:
    """0, the checkpoints w_j and N; p_j is computed in hundredths, which are exact."""
    hundredths, gap = [0], 22
    while hundredths[-1] < 100:
        hundredths.append(hundredths[-1] + gap)
        gap = max(gap - 3, 6)
    return sorted({min(-(-p * steps // 100), steps) for p in hundredths})
