"""Accuracy under PGM against ε and against the number of iterations.

A sound attack breaks every image at ε = 1, and more iterations stop helping at some point. Each
point is measured on all images that are classified correctly, including those that a smaller ε or
fewer iterations have broken: otherwise an accuracy that rises with ε would go unnoticed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn

from bilevel import Iterative, Solver
from bilevel.arguments import count
from bilevel.experiment.progress import unreported
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.accuracy import correct
from bilevel.robustness.evaluation.problems import problem_of
from bilevel.robustness.evaluation.results import Curve
from bilevel.robustness.methods import EVALUATION_START, EVALUATION_STEP
from bilevel.robustness.threats.norms import Norm, ball_of
from bilevel.robustness.threats.perturbation import Perturbation

_STEPS = 10  # of the attack against ε (Appendix D.1)

# Steps of 0.003/0.031·ε take ten iterations from the image to the edge of the ball, and the first
# of them break little: a curve that is flat there has not converged.
_MIN_ITERATIONS = 100


def accuracy_by_epsilon(
    model: nn.Module,
    images: ImageSet,
    eps: float,
    *,
    norm: Norm = "linf",
    batch_size: int = 256,
    report: Callable[[int, int], None] = unreported,
) -> Curve:
    """Accuracy under PGM-10 of step size ε/10 for ε from 0 to where every image is within reach.

    That is 1 in L∞ (Appendix D.1, Figure 10), and √d in L2 and d in L1 for images of d numbers.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images, such as a :func:`~bilevel.robustness.sample`.
        eps: The evaluated ε; the curve has points at it, at its quarter, half, double and
            fourfold, and at every tenth of the range.
        norm: The norm of the threat model.
        batch_size: Images a batch.
        report: Called with the number of points done and their total.

    Returns:
        The curve, from ε = 0 (clean) to where a sound attack leaves no accuracy; without points,
        and with the problem, if the attack fails.

    Raises:
        BilevelError: If there is no such norm.
    """
    ball, shape = ball_of(norm), images.images.shape[1:]
    reach = ball(1.0).norm(torch.ones(1, *shape)).item()  # from black to white
    near = {min(reach, factor * eps) for factor in (0.25, 0.5, 1, 2, 4)}
    at = sorted(near | {tenth / 10 * reach for tenth in range(11)})
    attacked = [ball(radius, start=EVALUATION_START) for radius in at[1:]]
    parts = _correct_batches(model, images, batch_size)
    curve = Curve("ε", (), (), len(images))
    for radius, follower in zip(at, (None, *attacked), strict=True):  # None: clean, at ε = 0
        solver = follower.pgm(radius / _STEPS, _STEPS) if follower else None
        curve = _extended(curve, radius, model, follower, ((part, solver) for part in parts))
        if curve.problem:
            break
        report(len(curve.at), len(at))
    return curve


def accuracy_by_iterations(
    model: nn.Module,
    images: ImageSet,
    eps: float,
    *,
    norm: Norm = "linf",
    most: int = 1000,
    threshold: float = 0.005,
    batch_size: int = 256,
    report: Callable[[int, int], None] = unreported,
) -> Curve:
    """Accuracy under PGM of step size 0.003/0.031·ε at 1, 2, 5, 10, 20, 50, … iterations.

    Each point continues the run of the one before, so that the curve costs as much as its last
    point. It ends where the accuracy stops falling, but not before 100 iterations.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: The images.
        eps: ε.
        norm: The norm of the threat model.
        most: Largest number of iterations.
        threshold: The curve ends if the accuracy has not fallen by more than this since the last
            point.
        batch_size: Images a batch.
        report: Called with the number of iterations done and the expected total.

    Returns:
        The curve; without points, and with the problem, if the attack fails.

    Raises:
        BilevelError: If there is no such norm, or ``most`` is not a positive integer.
    """
    count("most", most)
    follower = ball_of(norm)(eps, start=EVALUATION_START)
    step = follower.ascent(EVALUATION_STEP * eps)
    parts = _correct_batches(model, images, batch_size)
    solvers = [Iterative(step, 0, warm_start=True) for _ in parts]  # each keeps its batch's δ
    curve = Curve("iterations", (), (), len(images))
    for done, iterations in itertools.pairwise((0, *_one_two_five(most))):
        for solver in solvers:
            solver.steps = iterations - done
        attacked = zip(parts, solvers, strict=True)
        curve = _extended(curve, iterations, model, follower, attacked)
        if curve.problem:
            break
        accuracy, enough = curve.accuracy, iterations >= _MIN_ITERATIONS
        ended = enough and accuracy[-2] - accuracy[-1] <= threshold
        report(iterations, iterations if ended else most)
        if ended:
            break
    return curve


def _one_two_five(most: int) -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, … below ``most``, then ``most``."""
    for power in itertools.count():
        for digit in (1, 2, 5):
            if digit * 10**power >= most:
                yield most
                return
            yield digit * 10**power


def _correct_batches(model: nn.Module, images: ImageSet, batch_size: int) -> list[ImageSet]:
    """The images that are classified correctly, a batch each."""
    rows = correct(model, images, batch_size=batch_size).nonzero().squeeze(1)
    return [images.subset(part) for part in rows.split(batch_size) if len(part)]


def _extended(
    curve: Curve,
    at: float,
    model: nn.Module,
    follower: Perturbation | None,
    attacked: Iterable[tuple[ImageSet, Solver | None]],
) -> Curve:
    """The curve with one more point; without any, and with the problem, if an attack fails."""
    left = 0
    try:
        for batch, solver in attacked:
            left += int(correct(model, batch, follower, solver, batch_size=len(batch)).sum())
    except Exception as error:
        return replace(curve, at=(), accuracy=(), problem=problem_of(error))
    return replace(curve, at=(*curve.at, at), accuracy=(*curve.accuracy, left / curve.images))
