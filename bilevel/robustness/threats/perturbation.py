"""Threat models, as followers of a classifier.

max over δ of loss(f(x + δ), y)   subject to   ‖δ‖ ≤ ε and x + δ in [0, 1]
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.networks.speed import at_least_float32
from bilevel.robustness.threats.losses import Loss, cross_entropy


class Perturbation(FollowerProblem):
    """A perturbation δ of an image that maximises the classifier's loss (eq. 3).

    The leader's ``model`` maps images in [0, 1] to logits.

    Args:
        eps: ε, the radius, in units of the pixel range [0, 1].
        start: Radius of the ball from which the initial δ is drawn; 0 for δ = 0. The paper
            evaluates with 1e-4.
        loss: The loss to maximise, a function of the logits; see
            ``bilevel.robustness.threats.losses``.
    """

    sense: Literal["min", "max"] = "max"

    def __init__(self, eps: float, *, start: float = 0.0, loss: Loss = cross_entropy) -> None:
        for name, radius in (("eps", eps), ("start", start)):
            if not (math.isfinite(radius) and radius >= 0):
                raise BilevelError(
                    f"{name} is {radius}: a radius is a number from 0 on; the paper's ε is 0.031"
                )
        self.eps = eps
        self.start = start
        self.loss = loss

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
        return self._into_ball_and_box(self.noise(batch.x), batch)

    def context(self, y: Tensor, batch: Batch) -> Tensor:
        """The perturbed image x + δ, the input of the paper's attackers."""
        return batch.x + y

    def objective(self, leader: Any, y: Tensor, batch: Batch) -> Tensor:
        """The loss at x + δ."""
        return self.loss(at_least_float32(leader.model(batch.x + y)), batch)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        """δ projected onto the ball, then x + δ clipped to [0, 1], which stays in the ball."""
        return self._into_ball_and_box(y, batch)

    def _into_ball_and_box(self, delta: Tensor, batch: Batch) -> Tensor:
        return (batch.x + self.clip(delta)).clamp(0, 1) - batch.x

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", repr(self.loss))
        return f"{type(self).__name__}(eps={self.eps:g}, start={self.start:g}, loss={loss})"


class Linf(Perturbation):
    """‖δ‖∞ ≤ ε, the paper's threat model.

    Args:
        eps: ε in [0, 1]; 0.031 in the paper (not 8/255).
        start: Radius of the random start.
        loss: The loss to maximise.

    Raises:
        BilevelError: If ε is not in [0, 1].

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
