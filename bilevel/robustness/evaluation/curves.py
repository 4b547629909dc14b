"""Accuracy under PGM against ε and against its number of iterations: does the attack behave?

A sound attack breaks every image once ε = 1 lets it paint any picture, and more iterations stop
helping at some point. Both curves are measured on all images that the classifier gets right, also
on those that a smaller ε or a shorter run has broken already: were these left out, an attack that
succeeds less often where it may do more could not be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, pairwise

from torch import nn

from bilevel import Iterative, Solver, pgm
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.accuracy import correct
from bilevel.robustness.evaluation.results import Curve
from bilevel.robustness.threats.perturbation import Linf
from bilevel.robustness.training.methods import EVALUATION_STEP
from bilevel.updates import SignGradient

_START = 1e-4  # radius of the random start (Sec. 4.1)
_STEPS = 10  # of the attack against ε (Appendix D.1)

# A step of 0.003/0.031·ε needs ten iterations from the image to the edge of the ball, and the first
# of them break little: a curve that is flat before its end would be no sign of convergence.
_ITERATIONS = 100


def accuracy_by_epsilon(
    model: nn.Module,
    images: ImageSet,
    eps: float,
    *,
    batch_size: int = 256,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Curve:
    """Accuracy under PGM-10 of step size ε/10 for ε from 0 to 1 (Appendix D.1, Figure 10).

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images, such as a :func:`~bilevel.robustness.sample`.
        eps: The ε that the evaluation is about; the curve has points at it and at its quarter,
            half, double and fourfold, beside every tenth.
        batch_size: Images a batch.
        report: Called with the number of points done and their total.

    Returns:
        The curve, from ε = 0 (clean) to ε = 1, where a sound attack leaves nothing.
    """
    near = {min(1.0, factor * eps) for factor in (0.25, 0.5, 1, 2, 4)}
    at = sorted(near | {tenth / 10 for tenth in range(11)})
    parts = _right(model, images, batch_size)
    accuracies = []
    for done, radius in enumerate(at, start=1):
        follower = Linf(radius, start=_START)
        solver = pgm(radius / _STEPS, _STEPS) if radius else None  # None: clean
        left = sum(_left(model, part, follower, solver) for part in parts)
        accuracies.append(left / len(images))
        report(done, len(at))
    return Curve("ε", tuple(at), tuple(accuracies), len(images))


def accuracy_by_iterations(
    model: nn.Module,
    images: ImageSet,
    eps: float,
    *,
    most: int = 1000,
    threshold: float = 0.005,
    batch_size: int = 256,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Curve:
    """Accuracy under PGM of step size 0.003/0.031·ε at 1, 2, 5, 10, 20, 50, … iterations.

    Each longer run continues the shorter one, so that the whole curve costs its last point. It
    ends where the accuracy falls no longer, after 100 iterations or more.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images.
        eps: ε.
        most: Iterations at most.
        threshold: The curve goes on where it has fallen by more than this since its last point.
        batch_size: Images a batch.
        report: Called with the number of iterations done and their total, as far as it is known.

    Returns:
        The curve.
    """
    follower, step = Linf(eps, start=_START), SignGradient(EVALUATION_STEP * eps)
    parts = _right(model, images, batch_size)
    solvers = [Iterative(step, 0, warm_start=True) for _ in parts]  # each keeps its batch's answer
    at: list[int] = []
    accuracies: list[float] = []
    for done, iterations in pairwise((0, *_one_two_five(most))):
        left = 0
        for solver, part in zip(solvers, parts, strict=True):
            solver.steps = iterations - done
            left += _left(model, part, follower, solver)
        at.append(iterations)
        accuracies.append(left / len(images))
        ended = iterations >= _ITERATIONS and accuracies[-2] - accuracies[-1] <= threshold
        report(iterations, iterations if ended else most)
        if ended:
            break
    return Curve("iterations", tuple(at), tuple(accuracies), len(images))


def _one_two_five(most: int) -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, … below ``most``, then ``most``."""
    for power in count():
        for digit in (1, 2, 5):
            if digit * 10**power >= most:
                yield most
                return
            yield digit * 10**power


def _right(model: nn.Module, images: ImageSet, batch_size: int) -> list[ImageSet]:
    """The images that the classifier gets right, in pieces of one batch each."""
    rows = correct(model, images, batch_size=batch_size).nonzero().squeeze(1)
    return [images.subset(piece) for piece in rows.split(batch_size) if len(piece)]


def _left(model: nn.Module, part: ImageSet, follower: Linf, solver: Solver | None) -> int:
    """How many images stay right, attacked as one batch."""
    return int(correct(model, part, follower, solver, batch_size=len(part)).sum())
