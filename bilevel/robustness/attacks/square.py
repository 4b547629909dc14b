"""The Square Attack: random search with square windows, without gradients."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem
from bilevel.robustness.attacks.attack import Kind
from bilevel.robustness.attacks.checks import check_gain
from bilevel.robustness.attacks.samples import better
from bilevel.robustness.attacks.square_proposals import L2Proposals, LinfProposals
from bilevel.robustness.threats.losses import dlr, margin, targeted_dlr, targeted_margin
from bilevel.robustness.threats.perturbation import L2, Linf
from bilevel.robustness.threats.threat import loss_of
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value, leaves

_P = 0.8  # the first window's share of the image
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of it, in 10,000 queries
# Losses that are positive only where misclassified, which ends the search.
_SIGNED = (margin, dlr, targeted_dlr, targeted_margin)
_EVERY = 10  # queries from one look for misclassified images to the next, which waits


class Square(Solver):
    r"""The Square Attack of Andriushchenko et al. (2020), in the follower's norm.

    In L∞:

    .. math::
        z_i &= \begin{cases} s_c\,\varepsilon & \text{in a window of side } \sqrt{p\,hw} \\
               y_{k,i} & \text{elsewhere} \end{cases}
               \qquad s_c = \pm 1 \text{ for each channel} \\
        y_{k+1} &= \Pi_Y(z) \text{ where that raises the gain, otherwise } y_k

    Each sample has its own window and signs, drawn uniformly; signs that would change nothing are
    reversed. Where no square of that side fits, the window is a rectangle as high or as wide as the
    image, of the same area: of a signal, an image of one row, a stretch. The first proposal is
    vertical stripes of ±ε. In L2 the first proposal is a grid of bumps, and the following ones add
    a bump in one window, to which they move the norm that another window holds. p is 0.8 at first
    and is halved at the queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000; for
    other numbers of queries the schedule is rescaled. The authors start from the first proposal;
    here it must raise the gain too, so that no sample ends below its start.

    It takes no gradient, so masked gradients do not stop it. The authors maximise the margin, and
    stop when an image is misclassified. Here images leave the batch when ``margin`` or ``dlr``,
    targeted or not, is positive, which says so; the solver looks at the start and every 10 queries,
    and then waits for the device. All images get all queries with another loss, which is better on
    a surrogate, with an objective of your own, or in a batch that cannot be divided.

    "Square Attack: a query-efficient black-box adversarial attack via random search", arXiv
    1912.00049, Algorithms 1 to 3.

    Args:
        queries: Evaluated points a sample, the start included, at most; each costs the batch, or
            what is left of it, one forward pass.

    Raises:
        BilevelError: If ``queries`` is less than 1; in the solve, if the threat model is no
            :class:`~bilevel.robustness.Linf` and no :class:`~bilevel.robustness.L2`, its data
            are not of shape (B, C, H, W), or its loss is one number for all images.

    Example:
        >>> from bilevel.robustness import Linf, SolverAttack
        >>> from bilevel.robustness.threats.losses import margin
        >>> SolverAttack("Square", Linf(0.031, loss=margin), Square(300)).kind
        'black-box'
    """

    kind: Kind = "black-box"

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = count("queries", queries)

    def check(self, follower: FollowerProblem) -> None:
        """Refuses a threat model whose ball the proposals are not made for."""
        _proposals(follower)

    @torch.no_grad()
    def answer(self, oracle: Oracle) -> Value:
        """The best point that each sample has visited, including the start."""
        proposals, stops = _proposals(oracle.follower), loss_of(oracle.follower) in _SIGNED
        search = _begin(oracle)
        answer = search.best.clone()
        for query in range(1, self.queries):
            if stops and query % _EVERY == 1:
                answer[search.rows] = search.best
                search = search.unbroken()
                if not len(search.rows):
                    break
            if query == 1:
                (point,) = leaves(search.oracle.project(proposals.first(search.best)))
            else:
                share = _share(query / self.queries)
                point = proposals.windowed(search.oracle, search.best, share)
            search = search.compared(point)
            oracle.evaluations += 1
        answer[search.rows] = search.best
        return answer

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"queries={self.queries}"


class _Search(NamedTuple):
    """The images that are still attacked; every tensor has one row per image."""

    oracle: Oracle  # of these images
    rows: Tensor  # position in the full batch
    best: Tensor
    gain: Tensor

    def compared(self, point: Tensor) -> _Search:
        """The search with the new points where they are better."""
        best, gain = better(self.oracle, point, self.best, self.gain)
        return self._replace(best=best, gain=gain)

    def unbroken(self) -> _Search:
        """The search without the images that are misclassified."""
        active = ~(self.gain > 0)
        if active.all():
            return self
        try:
            oracle = self.oracle.restricted(active)
        except BilevelError:  # the batch cannot be divided
            return self
        return _Search(oracle, *(part[active] for part in self[1:]))


def _begin(oracle: Oracle) -> _Search:
    """The search at the start of the solve, which is evaluated."""
    (best,) = leaves(oracle.init())
    if best.dim() != 4:
        raise BilevelError(
            f"y is of shape {tuple(best.shape)}: Square changes windows of an image; give data "
            "of shape (B, C, H, W), a signal as an image of one row, or attack with APGD"
        )
    gain = oracle.gain(best)
    check_gain(gain, best, oracle.batch)
    oracle.evaluations += 1
    return _Search(oracle, torch.arange(len(best), device=best.device), best, gain)


def _proposals(follower: FollowerProblem) -> LinfProposals | L2Proposals:
    """Those of the follower's norm."""
    if isinstance(follower, Linf):
        return LinfProposals(follower.eps)
    if isinstance(follower, L2):
        return L2Proposals(follower.eps)
    raise BilevelError(
        f"Square was given {type(follower).__name__}: its windows are scaled to the ε of a ball; "
        "give Linf, L2 or a subclass, or sample at random with RandomSampling"
    )


def _share(progress: float) -> float:
    """p, the share of the image that a window takes after a fraction of the queries."""
    return _P * 0.5 ** bisect_left(_HALVINGS, 10_000 * progress)
