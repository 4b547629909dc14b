"""The Square Attack: random search with square windows, without gradients."""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from bilevel.arguments import count
from bilevel.problem import FollowerProblem
from bilevel.robustness.attacks.samples import better, choose, linf_radius
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value, leaves

_P = 0.8  # the first window's share of the image
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of it, in 10,000 queries


class Square(Solver):
    r"""The Square Attack of Andriushchenko et al. (2020), in the L∞ norm.

    .. math::
        z_i &= \begin{cases} s_c\,\varepsilon & \text{in a window of side } \sqrt{p\,hw} \\
               y_{k,i} & \text{elsewhere} \end{cases}
               \qquad s_c = \pm 1 \text{ for each channel} \\
        y_{k+1} &= \Pi_Y(z) \text{ where that raises the gain, otherwise } y_k

    Each sample has its own window and signs, drawn uniformly; signs that would change nothing are
    reversed. The first proposal is vertical stripes of ±ε. p is 0.8 at first and is halved at the
    queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000; for other numbers of
    queries the schedule is rescaled. The authors start from the stripes; here they must raise the
    gain too, so that no sample ends below its start.

    It takes no gradient, so masked gradients do not stop it. The authors maximise the margin.

    "Square Attack: a query-efficient black-box adversarial attack via random search", arXiv
    1912.00049, Algorithms 1 and 2.

    Args:
        queries: Evaluated points a sample, the start included; each costs the batch one forward
            pass.

    Raises:
        BilevelError: If ``queries`` is less than 1; in the solve, if the threat model is no
            :class:`~bilevel.robustness.Linf`.

    Example:
        >>> from bilevel.robustness import Linf, SolverAttack
        >>> from bilevel.robustness.threats.losses import margin
        >>> SolverAttack("Square", Linf(0.031, loss=margin), Square(300), kind="black-box")
        SolverAttack('Square')
    """

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = count("queries", queries)

    def check(self, follower: FollowerProblem) -> None:
        """Refuses a threat model that is no L∞ ball."""
        linf_radius(self, follower)

    @torch.no_grad()
    def answer(self, oracle: Oracle) -> Value:
        """The best point that each sample has visited, including the start."""
        eps = linf_radius(self, oracle.follower)
        (best,) = leaves(oracle.init())
        gain = oracle.gain(best)
        for query in range(1, self.queries):
            if query == 1:
                (point,) = leaves(oracle.project(_stripes(best, eps)))
            else:
                point = _proposal(oracle, best, eps, query / self.queries)
            best, gain = better(oracle, point, best, gain)
        oracle.evaluations += self.queries
        return best

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"queries={self.queries}"


def _stripes(like: Tensor, eps: float) -> Tensor:
    """±ε, drawn for each channel and column."""
    samples, channels, _, width = like.shape
    return eps * _signs(like, samples, channels, 1, width).expand_as(like)


def _proposal(oracle: Oracle, best: Tensor, eps: float, progress: float) -> Tensor:
    """The best points with ±ε in a window; other points than these, if that is possible."""
    samples, channels, height, width = best.shape
    window = _windows(best, _side(height, width, progress))
    change = eps * _signs(best, samples, channels, 1, 1)
    proposed = (oracle.project(torch.where(window, z, best)) for z in (change, -change))
    (point,), (opposite,) = map(leaves, proposed)
    return choose((point == best).flatten(1).all(1), opposite, point)


def _side(height: int, width: int, progress: float) -> int:
    """The side of the windows after a fraction of the queries."""
    p = _P / 2 ** bisect_left(_HALVINGS, 10_000 * progress)
    return min(max(round(math.sqrt(p * height * width)), 1), height, width)


def _windows(like: Tensor, side: int) -> Tensor:
    """A mask for each sample, ``(B, 1, H, W)``: a square at a uniform position."""
    samples, _, height, width = like.shape
    inside = []
    for size in (height, width):
        first = torch.randint(size - side + 1, (samples, 1), device=like.device)
        position = torch.arange(size, device=like.device)
        inside.append((first <= position) & (position < first + side))
    rows, columns = inside
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _signs(like: Tensor, *shape: int) -> Tensor:
    """−1 or 1, with equal probability."""
    return torch.randint(2, shape, device=like.device).to(like) * 2 - 1
