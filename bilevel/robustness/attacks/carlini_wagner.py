"""The attack of Carlini & Wagner in the L∞ norm, batched."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu

from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem
from bilevel.robustness.attacks.checks import check_gain
from bilevel.robustness.attacks.samples import choose, choose_all
from bilevel.robustness.data.batches import per_sample
from bilevel.robustness.threats.bounds import PIXELS, equal_bounds, interval
from bilevel.robustness.threats.losses import OF_CLASSES, cross_entropy, targeted_cross_entropy
from bilevel.robustness.threats.perturbation import Linf
from bilevel.robustness.threats.threat import loss_of
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value, leaves

_MIN_TAU = 1 / 256
_TAU_DECAY = 0.9
_MIN_LOG10_C, _MAX_LOG10_C = -5, 2
_SEARCHED = ("clip", "project", "perturbed")  # of Linf, which the search replaces
_LR, _BETA1, _BETA2, _ADAM_EPS = 5e-3, 0.9, 0.999, 1e-8


class CarliniWagner(Solver):
    r"""The L∞ attack of Carlini & Wagner (2017), with a separate search for each image.

    .. math:: \min_\delta\; c \cdot [z_y - \max_{k \ne y} z_k]_+ + \sum_i [|\delta_i| - \tau]_+

    Starting from τ = 1, c is increased from 1e-5 to 100 by factors of ten, with up to ``steps``
    iterations of Adam (learning rate 5e-3) each, until the image is misclassified and the loss is
    below 1e-4·c. Then τ is set to 0.9·min(τ, max\|δ\|), and the search continues from the same δ
    and c. It ends for an image when it is misclassified within the follower's ε, when no c
    succeeds, or when τ has reached 1/256.

    Where ε is below the learning rate it is weak, and warns.

    The authors attack one image at a time. Here each image has its own τ, c, δ and Adam state, all
    take their steps together, and finished images leave the batch. The authors keep x + δ in [0, 1]
    by a change of variables; here it is clipped after each step.

    The follower's gain must be positive exactly where a sample is misclassified, and the negative
    of the term that c multiplies: ``loss=margin``.

    "Towards evaluating the robustness of neural networks", arXiv 1608.04644, Sec. VI. Jiang et
    al. (2021) allow 100 iterations (Sec. 4).

    Args:
        steps: Iterations for each τ and c.

    Raises:
        BilevelError: If ``steps`` is out of its range; in the solve, if the threat model is no
            :class:`~bilevel.robustness.Linf` of images or projects otherwise, or its loss is the
            cross entropy or one number for all images.

    Example:
        >>> from bilevel.robustness import Linf, SolverAttack
        >>> from bilevel.robustness.threats.losses import margin
        >>> SolverAttack("CW", Linf(0.031, loss=margin), CarliniWagner())
        SolverAttack('CW')
    """

    def __init__(self, *, steps: int = 100) -> None:
        super().__init__()
        self.steps = count("steps", steps)

    def check(self, follower: FollowerProblem) -> None:
        """Refuses a threat model that is no L∞ ball of images, and a loss without a sign."""
        if not isinstance(follower, Linf):
            raise BilevelError(
                f"CarliniWagner was given {type(follower).__name__}: its search is scaled to the "
                "ε of an L∞ ball; give Linf or a subclass, or attack with APGD"
            )
        if not equal_bounds(follower.bounds, PIXELS):
            raise BilevelError(
                f"the bounds are {interval(follower.bounds)}: CarliniWagner searches among images, "
                "whose pixels lie in [0, 1]; attack other data with APGD, loss=margin"
            )
        kind = type(follower)
        own = [name for name in _SEARCHED if getattr(kind, name) is not getattr(Linf, name)]
        if own:
            raise BilevelError(
                f"{kind.__name__} has a {own[0]} of its own: CarliniWagner searches all "
                "images x + δ, and would be weak where not all are allowed; attack with APGD, "
                "loss=margin"
            )
        if loss_of(follower) in (cross_entropy, targeted_cross_entropy):
            raise BilevelError(
                "CarliniWagner was given a cross entropy: it stops where the loss is positive, "
                "which that is at each image or at none; give the threat model loss=margin"
            )
        if 0 < follower.eps < _LR:
            warnings.warn(
                f"ε is {follower.eps:g}: CarliniWagner moves pixels by {_LR} a step, of which few "
                "end within so small a ball, so that it is weak; attack with APGD, loss=margin",
                stacklevel=2,
            )

    def answer(self, oracle: Oracle) -> Value:
        """The last successful δ of each image, clipped to Y; zero where there is none."""
        threat: Linf = oracle.follower
        full, search = oracle, _begin(oracle)
        last = torch.zeros_like(search.delta)
        if loss_of(threat) not in OF_CLASSES:
            _check_sign(full.gain(search.delta))
        while len(search.rows):
            gain, gradients = oracle.gain_and_gradient(search.delta)
            full.evaluations += oracle is not full  # a part of the batch has a count of its own
            check_gain(gain, search.delta, oracle.batch)
            (gradient,) = leaves(gradients)
            solved, norm = search.solved(gain), search.delta.abs().flatten(1).amax(1)
            within = (gain > 0) & (norm <= threat.eps)
            following = search.stepped(gain, gradient, self.steps)
            if (solved | within).any():  # in most iterations none is
                last[search.rows] = choose(solved | within, search.delta, last[search.rows])
                following = choose_all(solved, search.tightened(norm), following)
            search = following
            active = ~within & (search.tau > _MIN_TAU) & (search.log10_c <= _MAX_LOG10_C)
            if not active.all():
                oracle, search = oracle.restricted(active), search.restricted(active)
        return full.project(last)

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"steps={self.steps}"


class _Search(NamedTuple):
    """The searches of a batch, each at its own stage; every tensor has one row per image."""

    rows: Tensor  # position in the full batch
    image: Tensor
    delta: Tensor
    exp_avg: Tensor  # Adam's state, named as in torch.optim
    exp_avg_sq: Tensor
    step: Tensor  # iterations since τ changed, over all c
    tau: Tensor
    log10_c: Tensor

    def solved(self, gain: Tensor) -> Tensor:
        """Where the problem is solved for the current τ: misclassified, loss below 1e-4·c."""
        return (gain > 0) & (self._excess().flatten(1).sum(1) < 1e-4 * self._c())

    def tightened(self, norm: Tensor) -> _Search:
        """The searches with a smaller τ and Adam's state reset."""
        return self._replace(
            tau=torch.minimum(self.tau, norm) * _TAU_DECAY,
            step=torch.zeros_like(self.step),
            exp_avg=torch.zeros_like(self.exp_avg),
            exp_avg_sq=torch.zeros_like(self.exp_avg_sq),
        )

    def stepped(self, gain: Tensor, gradient: Tensor, steps: int) -> _Search:
        """One iteration of Adam; after every ``steps`` of them, the next c."""
        weight = per_sample(self._c() * (gain < 0), gradient)
        loss_gradient = (self._excess() > 0) * self.delta.sign() - weight * gradient
        step = self.step + 1
        exp_avg = torch.lerp(loss_gradient, self.exp_avg, _BETA1)
        exp_avg_sq = torch.lerp(loss_gradient.square(), self.exp_avg_sq, _BETA2)
        denominator = _bias_corrected(exp_avg_sq, _BETA2, step).sqrt() + _ADAM_EPS
        change = _LR * _bias_corrected(exp_avg, _BETA1, step) / denominator
        return self._replace(
            delta=(self.image + self.delta - change).clamp(0, 1) - self.image,
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            step=step,
            log10_c=self.log10_c + (step % steps == 0),
        )

    def restricted(self, mask: Tensor) -> _Search:
        """The searches of the images in the mask."""
        return _Search._make(part[mask] for part in self)

    def _c(self) -> Tensor:
        return 10**self.log10_c

    def _excess(self) -> Tensor:
        return relu(self.delta.abs() - per_sample(self.tau, self.delta))


def _check_sign(gain: Tensor) -> None:
    """Warns of a loss of one's own that may be positive everywhere, as a cross entropy is."""
    if gain.numel() > 1 and (gain > 0).all():  # one image may be misclassified
        warnings.warn(
            "the loss is positive at all clean images: CarliniWagner takes that as success and "
            "leaves them as they are; give a loss that is positive only where the attack has "
            "succeeded, as margin is",
            stacklevel=2,
        )


def _begin(oracle: Oracle) -> _Search:
    """The initial searches."""
    (delta,) = leaves(oracle.init())
    if torch.finfo(delta.dtype).bits < 32:
        raise BilevelError(
            f"images are {delta.dtype}: CarliniWagner counts its steps and halves small numbers, "
            "which half precision rounds away; give float32 images, and autocast in the classifier"
        )
    one = delta.new_ones(len(delta))
    return _Search(
        rows=torch.arange(len(delta), device=delta.device),
        image=oracle.batch.x,
        delta=delta,
        exp_avg=torch.zeros_like(delta),
        exp_avg_sq=torch.zeros_like(delta),
        step=torch.zeros_like(one),
        tau=one,
        log10_c=_MIN_LOG10_C * one,
    )


def _bias_corrected(average: Tensor, beta: float, step: Tensor) -> Tensor:
    """``average`` / (1 − β^step); expm1 avoids the cancellation in single precision."""
    return average / per_sample(-torch.expm1(step * math.log(beta)), average)
