"""Threat models, as followers of a classifier.

Threat          max over y of loss(f(perturbed(x, y)))   subject to   y in Y
Perturbation    max over δ of loss(f(x + δ))             subject to   ‖δ‖ ≤ ε and x + δ in [0, 1]
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.errors import BilevelError, describe
from bilevel.problem import FollowerProblem, Sense
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.networks.speed import at_least_float32
from bilevel.robustness.threats.losses import Loss, cross_entropy


class Threat(FollowerProblem):
    """What an adversary may do to an image, described by a y that need not have its shape.

    A subclass implements :meth:`init`, :meth:`perturbed` and :meth:`project`. The leader's
    ``model`` maps images in [0, 1] to logits.

    Args:
        loss: The loss to maximise, a function of the logits; see
            ``bilevel.robustness.threats.losses``.

    Example:
        >>> class Shift(Threat):
        ...     def init(self, batch): return batch.x.new_zeros(len(batch.x), 1)
        ...     def project(self, y, batch): return y.clamp(-0.1, 0.1)
        ...     def perturbed(self, y, batch): return (batch.x + y[:, :, None, None]).clamp(0, 1)
        >>> black = Batch(torch.zeros(1, 1, 1, 2), torch.tensor([0]))
        >>> Shift().perturbed(torch.tensor([[0.1]]), black)
        tensor([[[[0.1000, 0.1000]]]])
    """

    sense: Sense = "max"

    def __init__(self, *, loss: Loss = cross_entropy) -> None:
        self.loss = loss

    @abstractmethod
    def perturbed(self, y: Any, batch: Batch) -> Tensor:
        """The images that y makes, which attacks return and the classifier is judged on.

        Args:
            y: The follower's variable, as :meth:`init` returns it.
            batch: Clean images.

        Returns:
            ``(B, C, H, W)`` in [0, 1].
        """

    def context(self, y: Any, batch: Batch) -> Tensor:
        """The perturbed image, the input of the paper's attackers."""
        return self.perturbed(y, batch)

    def objective(self, leader: Any, y: Any, batch: Batch) -> Tensor:
        """The loss at the perturbed image."""
        return self.loss(at_least_float32(leader.model(self.perturbed(y, batch))), batch)

    def __repr__(self) -> str:
        # All settings, numbers in full: a resumed battery knows its attacks by them.
        settings = ", ".join(f"{name}={_shown(value)}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Perturbation(Threat):
    """A perturbation δ of an image that maximises the classifier's loss (eq. 3).

    The leader's ``model`` maps images in [0, 1] to logits.

    Args:
        eps: ε, the radius, in units of the pixel range [0, 1].
        start: Radius of the ball from which the initial δ is drawn; 0 for δ = 0. The paper
            evaluates with 1e-4.
        loss: The loss to maximise, a function of the logits; see
            ``bilevel.robustness.threats.losses``.
    """

    def __init__(self, eps: float, *, start: float = 0.0, loss: Loss = cross_entropy) -> None:
        for name, radius in (("eps", eps), ("start", start)):
            try:
                finite = math.isfinite(radius)
            except (TypeError, ValueError, RuntimeError) as error:  # of arrays and tensors
                raise BilevelError(
                    f"{name} is {describe(radius)}: a threat model has one radius for all images; "
                    "give a number, and attack the images of each radius in a batch of their own"
                ) from error
            if not (finite and radius >= 0):
                raise BilevelError(
                    f"{name} is {radius}: a radius is a number from 0 on; the paper's ε is 0.031"
                )
        self.eps = eps
        self.start = start
        super().__init__(loss=loss)

    @abstractmethod
    def clip(self, delta: Tensor) -> Tensor:
        """Projects onto the ball of radius ε, without regard to the image.

        Args:
            delta: ``(B, C, H, W)``.

        Returns:
            The nearest points of the ball.
        """

    @abstractmethod
    def noise(self, like: Tensor) -> Tensor:
        """Draws from the ball of radius :attr:`start`, uniformly.

        Args:
            like: A tensor of the shape, type and device of the result.

        Returns:
            The noise.
        """

    def init(self, batch: Batch) -> Tensor:
        """Zero, or noise of radius :attr:`start`, projected."""
        if self.start == 0:
            return torch.zeros_like(batch.x)
        return self.project(self.noise(batch.x), batch)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        """The image with δ added, x + δ."""
        return batch.x + y

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        """δ projected onto the ball, then x + δ clipped to [0, 1], which stays in the ball."""
        return (batch.x + self.clip(y)).clamp(0, 1) - batch.x


class Linf(Perturbation):
    """‖δ‖∞ ≤ ε, the paper's threat model.

    Args:
        eps: ε in [0, 1]; 0.031 in the paper (not 8/255).
        start: Radius of the random start.
        loss: The loss to maximise.

    Raises:
        BilevelError: If a radius is not one number from 0 on, or ε is above 1.

    Example:
        >>> batch = Batch(torch.tensor([[[[0.0, 0.5]]]]), torch.tensor([0]))
        >>> Linf(0.1).project(torch.tensor([[[[-0.3, 0.3]]]]), batch)
        tensor([[[[0.0000, 0.1000]]]])
    """

    def __init__(self, eps: float, *, start: float = 0.0, loss: Loss = cross_entropy) -> None:
        super().__init__(eps, start=start, loss=loss)
        if eps > 1:
            raise BilevelError(
                f"eps is {eps}: pixels lie in [0, 1], so ε = 1 allows every image already; "
                "give ε as a fraction of the pixel range, 8/255 rather than 8"
            )

    def clip(self, delta: Tensor) -> Tensor:
        """Π_ε(δ) = sign(δ) ∘ min(abs(δ), ε)."""
        return delta.clamp(-self.eps, self.eps)

    def noise(self, like: Tensor) -> Tensor:
        """Uniform in [−start, start], independently for each value."""
        return torch.empty_like(like).uniform_(-self.start, self.start)


class L2(Perturbation):
    """‖δ‖₂ ≤ ε for each image.

    The projection onto ball and box is the composition of the two, as in the field's packages; it
    is not always the nearest point of their intersection.

    Args:
        eps: ε; 0.5 is usual for CIFAR-10.
        start: Radius of the random start.
        loss: The loss to maximise.

    Example:
        >>> batch = Batch(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]))
        >>> L2(0.1).project(torch.tensor([[[[0.3, 0.4]]]]), batch)
        tensor([[[[0.0600, 0.0800]]]])
    """

    def clip(self, delta: Tensor) -> Tensor:
        """δ · min(1, ε / ‖δ‖₂)."""
        norm = delta.flatten(1).norm(dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
        factor: Tensor = self.eps / norm
        return delta * factor.clamp(max=1).view(-1, 1, 1, 1)

    def noise(self, like: Tensor) -> Tensor:
        """Uniform in the ball of radius :attr:`start`."""
        direction = F.normalize(torch.randn_like(like).flatten(1), dim=1)
        uniform = torch.rand(len(like), 1, device=like.device, dtype=like.dtype)
        radius: Tensor = self.start * uniform ** (1 / direction.shape[1])
        return (radius * direction).view_as(like)


def _shown(value: object) -> str:
    """A setting in one line."""
    return str(getattr(value, "__name__", None) or " ".join(repr(value).split()))
