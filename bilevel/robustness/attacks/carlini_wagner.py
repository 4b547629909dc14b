"""The attack of Carlini & Wagner in the L∞ norm, for many images at once."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu

from bilevel.errors import BilevelError
from bilevel.robustness.attacks.samples import check_count, check_eps, choose, per_sample
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value, leaves

_LEAST_TAU = 1 / 256
_SHRINK = 0.9
_LEAST_EXPONENT, _LARGEST_EXPONENT = -5, 2  # of c = 10^exponent
_LR = 5e-3
_MEAN_DECAY, _SQUARE_DECAY = 0.9, 0.999  # Adam's β₁ and β₂


class CarliniWagner(Solver):
    r"""The L∞ attack of Carlini & Wagner (2017), every image in a search of its own.

    .. math:: \min_\delta\; c \cdot [z_y - \max_{k \ne y} z_k]_+ + \sum_i [|\delta_i| - \tau]_+

    For τ from 1 on, c goes from 1e-5 to 100 by factors of ten, each with up to ``steps`` iterations
    of Adam (learning rate 5e-3), until the loss is below 1e-4·c and the image is broken. Then τ
    becomes 0.9·min(τ, max\|δ\|), and the search goes on from that δ with that c. An image is done
    when it is broken within ``eps``, when no c breaks it, or when τ has reached 1/256.

    The authors attack one image after the other. Here each image has its own τ, c, δ and Adam
    state, all step together, and images that are done leave the batch. Where theirs keeps x + δ in
    [0, 1] by a change of variables, this clips it after each step.

    The follower's gain must be positive exactly where a sample is broken, and it must be the
    negative of what c multiplies: ``loss=margin``. Its context must be the perturbed image, as
    that of every :class:`~bilevel.robustness.Perturbation` is.

    "Towards evaluating the robustness of neural networks", arXiv 1608.04644, Sec. VI-D. Jiang et
    al. (2021) allow 100 iterations (Sec. 4).

    Args:
        eps: The follower's ε, in units of the pixel range.
        steps: Iterations for each τ and c.

    Raises:
        BilevelError: If an argument is out of its range, or the follower has no context.

    Example:
        >>> from bilevel.robustness import Linf, Solved
        >>> from bilevel.robustness.threats.losses import margin
        >>> Solved("CW", Linf(0.031, loss=margin), CarliniWagner(0.031))
        Solved('CW')
    """

    def __init__(self, eps: float, steps: int = 100) -> None:
        super().__init__()
        self.eps = check_eps(eps)
        self.steps = check_count("steps", steps)

    def answer(self, oracle: Oracle) -> Value:
        """The last δ that broke the image, clipped to Y; zero where none did."""
        whole, search = oracle, _begin(oracle)
        last = torch.zeros_like(search.delta)
        while len(search.rows):
            gain, slope = oracle.gain_and_gradient(search.delta)
            (gradient,) = leaves(slope)
            works, reach = search.works(gain), search.delta.abs().flatten(1).amax(1)
            found = (gain > 0) & (reach <= self.eps)
            stepped = search.stepped(gain, gradient, self.steps)
            if (works | found).any():  # most iterations bring nothing
                last[search.rows] = choose(works | found, search.delta, last[search.rows])
                stepped = search.shrunk(reach).where(works, stepped)
            search = stepped
            active = ~found & (search.tau > _LEAST_TAU) & (search.exponent <= _LARGEST_EXPONENT)
            if not active.all():
                oracle, search = oracle.restricted(active), search.restricted(active)
        return whole.project(last)

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"eps={self.eps:g}, steps={self.steps}"


class _Search(NamedTuple):
    """A search an image, each at a stage of its own; every tensor has a row an image."""

    rows: Tensor  # the image's place in the batch
    image: Tensor
    delta: Tensor
    mean: Tensor  # Adam's averages of the gradient and of its square
    square: Tensor
    age: Tensor  # iterations since τ changed, over all c
    tau: Tensor
    exponent: Tensor  # c = 10^exponent

    def works(self, gain: Tensor) -> Tensor:
        """Whether the image is broken with a perturbation that τ hardly punishes."""
        return (gain > 0) & (self._excess().flatten(1).sum(1) < 1e-4 * self._c())

    def shrunk(self, reach: Tensor) -> _Search:
        """After a success: a smaller τ from here on, with Adam as new."""
        return self._replace(
            tau=torch.minimum(self.tau, reach) * _SHRINK,
            age=torch.zeros_like(self.age),
            mean=torch.zeros_like(self.mean),
            square=torch.zeros_like(self.square),
        )

    def stepped(self, gain: Tensor, gradient: Tensor, steps: int) -> _Search:
        """One iteration of Adam, and the next c where this one has had its share of them."""
        pull = per_sample(self._c() * (gain < 0), gradient)
        slope = (self._excess() > 0) * self.delta.sign() - pull * gradient
        age = self.age + 1
        mean = torch.lerp(slope, self.mean, _MEAN_DECAY)
        square = torch.lerp(slope.square(), self.square, _SQUARE_DECAY)
        scale = _unbiased(square, _SQUARE_DECAY, age).sqrt() + 1e-8
        step = _LR * _unbiased(mean, _MEAN_DECAY, age) / scale
        return self._replace(
            delta=(self.image + self.delta - step).clamp(0, 1) - self.image,
            mean=mean,
            square=square,
            age=age,
            exponent=self.exponent + (age % steps == 0),
        )

    def where(self, chosen: Tensor, other: _Search) -> _Search:
        """These searches for the chosen images, the others for the rest."""
        return _Search._make(map(partial(choose, chosen), self, other))

    def restricted(self, chosen: Tensor) -> _Search:
        """The chosen images' searches alone."""
        return _Search._make(part[chosen] for part in self)

    def _c(self) -> Tensor:
        return 10**self.exponent

    def _excess(self) -> Tensor:
        return relu(self.delta.abs() - per_sample(self.tau, self.delta))


def _begin(oracle: Oracle) -> _Search:
    """Every image's search at its beginning."""
    (delta,) = leaves(oracle.init())
    image = oracle.context(torch.zeros_like(delta))
    if image is None:
        raise BilevelError(
            "CarliniWagner was given a follower without a context: it reads there where x + y "
            "leaves [0, 1]; write FollowerProblem.context, or attack a Perturbation"
        )
    one = delta.new_ones(len(delta))
    return _Search(
        rows=torch.arange(len(delta), device=delta.device),
        image=image,
        delta=delta,
        mean=torch.zeros_like(delta),
        square=torch.zeros_like(delta),
        age=torch.zeros_like(one),
        tau=one,
        exponent=_LEAST_EXPONENT * one,
    )


def _unbiased(average: Tensor, decay: float, age: Tensor) -> Tensor:
    """Adam's average divided by 1 − decay^age, which single precision alone would round off."""
    return average / per_sample(-torch.expm1(age * math.log(decay)), average)
