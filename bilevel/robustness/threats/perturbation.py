"""Perturbations of an image, bounded in a norm; the L∞ and the L2 ball.

Perturbation    max over δ of loss(f(x + δ))   subject to   ‖δ‖ ≤ ε and x + δ in [0, 1]

Data that are no images have bounds of their own in place of [0, 1], or none.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from bilevel import Iterative, Solver
from bilevel.errors import BilevelError
from bilevel.robustness.data.batches import Batch, TrackedBatch, per_sample
from bilevel.robustness.threats.bounds import (
    PIXELS,
    Bounds,
    checked_bounds,
    clipped,
    equal_bounds,
)
from bilevel.robustness.threats.checks import check_radius, check_reach, check_values
from bilevel.robustness.threats.losses import Loss, Targeted, cross_entropy
from bilevel.robustness.threats.memory import Memory
from bilevel.robustness.threats.threat import Threat
from bilevel.updates import NormalizedGradient, SignGradient, Update


class Perturbation(Threat):
    """A perturbation δ of an image that maximises the classifier's loss (eq. 3).

    The leader's ``model`` maps images in [0, 1] to logits. With other ``bounds`` any float data
    ``(B, ...)`` take the place of images, such as the rows of a table.

    Args:
        eps: ε, the radius, in units of the data: for images of the pixel range [0, 1].
        start: Radius of the ball from which the initial δ is drawn; 0 for δ = 0. The paper
            evaluates with 1e-4.
        loss: The loss to maximise, a function of the logits; see
            ``bilevel.robustness.threats.losses``.
        bounds: The lowest and the highest value of the data, to which x + δ is clipped: numbers, or
            tensors where the data lie that broadcast over a sample, such as one value per feature.
            None for none.

    Attributes:
        memory: Where the perturbations of the training images are kept from one step to the next,
            for :meth:`init` to start there; None, the default, if each attack starts anew.

    Raises:
        BilevelError: If a radius is not one number from 0 on, the bounds are no such pair, or the
            loss cannot be called with an output and a batch.
    """

    memory: Memory | None = None
    _reads = False  # whether init has read the memory

    index: ClassVar[str] = ""
    """The norm's index in print, such as ∞."""

    def __init__(
        self,
        eps: float,
        *,
        start: float = 0.0,
        loss: Loss = cross_entropy,
        bounds: Bounds | None = PIXELS,
    ) -> None:
        check_radius("eps", eps)
        check_radius("start", start)
        self.eps = eps
        self.start = start
        self.bounds = checked_bounds(bounds)
        super().__init__(loss=loss)
        self._check_reach()

    def _check_reach(self) -> None:
        """Refuses an ε as large as the range of the data, in a norm of single values."""

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

    @abstractmethod
    def norm(self, delta: Tensor) -> Tensor:
        """‖δ‖ of each image.

        Args:
            delta: ``(B, C, H, W)``.

        Returns:
            ``(B,)``.
        """

    @abstractmethod
    def ascent(self, step: float) -> Update:
        """The step rule that climbs a linear function most steeply in this norm.

        Its context is x + δ, so that it may leave out what the bounds stop.

        Args:
            step: η, the length of a step in this norm.

        Returns:
            A new update.
        """

    def pgm(self, step: float, steps: int) -> Solver:
        """The projected gradient method (PGD) in this norm; with one step of size ε it is FGSM.

        Args:
            step: η, the length of a step in this norm.
            steps: Iterations.

        Returns:
            A solver without parameters.

        Example:
            >>> Linf(0.031).pgm(0.007, 10)
            Iterative(
              steps=10
              (update): SignGradient(step=0.007)
            )
        """
        return Iterative(self.ascent(step), steps)

    def check(self, batch: Batch | Targeted) -> None:
        """Checks that the batch has images in [0, 1]; with other bounds, data within them."""
        check_values(batch, self.bounds)

    def init(self, batch: Any) -> Tensor:
        """Zero, or noise of radius :attr:`start`, projected; with a memory the last answer."""
        if self.memory is not None and isinstance(batch, TrackedBatch):
            self._reads = True
            return self.project(self.memory.read(batch), batch)
        if self.start == 0:
            return torch.zeros_like(batch.x)
        return self.project(self.noise(batch.x), batch)

    def keep(self, y: Tensor, batch: Any) -> None:
        """Writes δ into the memory, if there is one."""
        if self.memory is not None and isinstance(batch, TrackedBatch):
            if not self._reads:
                raise BilevelError(
                    f"nothing reads the memory of {type(self).__name__}: its init, or the solver, "
                    "starts elsewhere; let init begin with super().init(batch), the solver with "
                    "oracle.init(), or train without a memory (warm_start)"
                )
            self.memory.write(y, batch)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        """The image with δ added, x + δ."""
        return batch.x + y

    def project(self, y: Tensor, batch: Any) -> Tensor:
        """δ projected onto the ball, then x + δ clipped to the bounds, which stays in the ball."""
        delta = self.clip(y)
        if self.bounds is None:
            return delta
        return clipped(batch.x + delta, self.bounds) - batch.x

    def _shown(self) -> dict[str, Any]:
        """The attributes without the bounds of images, which most threat models have."""
        shown = super()._shown()
        if equal_bounds(self.bounds, PIXELS):
            del shown["bounds"]
        return shown


def adds(threat: Threat) -> TypeGuard[Perturbation]:
    """Whether y is added to the image, as a perturbation is unless a subclass does otherwise."""
    additive = Perturbation.perturbed
    return isinstance(threat, Perturbation) and type(threat).perturbed is additive


class Linf(Perturbation):
    """‖δ‖∞ ≤ ε, the paper's threat model.

    Args:
        eps: ε in [0, 1]; 0.031 in the paper (not 8/255).
        start: Radius of the random start.
        loss: The loss to maximise.
        bounds: The lowest and the highest value of other data, see :class:`Perturbation`.

    Raises:
        BilevelError: If a radius is not one number from 0 on, the bounds are no such pair, or ε is
            larger than they are apart.

    Example:
        >>> batch = Batch(torch.tensor([[[[0.0, 0.5]]]]), torch.tensor([0]))
        >>> Linf(0.1).project(torch.tensor([[[[-0.3, 0.3]]]]), batch)
        tensor([[[[0.0000, 0.1000]]]])
        >>> rows = Batch(torch.tensor([[30.0, 3998.0]]), torch.tensor([0]))
        >>> threat = Linf(5.0, bounds=(0.0, torch.tensor([90.0, 4000.0])))
        >>> threat.project(torch.tensor([[-9.0, 9.0]]), rows)
        tensor([[-5.,  2.]])
    """

    index = "∞"

    def _check_reach(self) -> None:
        """Each value is bounded by itself."""
        check_reach(self.eps, self.bounds)

    def clip(self, delta: Tensor) -> Tensor:
        """Π_ε(δ) = sign(δ) ∘ min(abs(δ), ε)."""
        return delta.clamp(-self.eps, self.eps)

    def noise(self, like: Tensor) -> Tensor:
        """Uniform in [−start, start], independently for each value."""
        return torch.empty_like(like).uniform_(-self.start, self.start)

    def norm(self, delta: Tensor) -> Tensor:
        """‖δ‖∞, the largest change of a pixel."""
        return delta.abs().flatten(1).amax(1)

    def ascent(self, step: float) -> SignGradient:
        """Along the sign of the gradient."""
        return SignGradient(step)


class L2(Perturbation):
    """‖δ‖₂ ≤ ε for each image.

    The projection onto ball and box is the composition of the two, as in the field's packages; it
    is not always the nearest point of their intersection.

    Args:
        eps: ε; 0.5 is usual for CIFAR-10.
        start: Radius of the random start.
        loss: The loss to maximise.
        bounds: The lowest and the highest value of other data, see :class:`Perturbation`.

    Example:
        >>> batch = Batch(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]))
        >>> L2(0.1).project(torch.tensor([[[[0.3, 0.4]]]]), batch)
        tensor([[[[0.0600, 0.0800]]]])
    """

    index = "₂"

    def clip(self, delta: Tensor) -> Tensor:
        """δ · min(1, ε / ‖δ‖₂)."""
        # Inside the ball ε / ε, whose derivative is 0, where that of ε / ‖δ‖ may overflow.
        norm = self.norm(delta).clamp(min=max(self.eps, torch.finfo(delta.dtype).tiny))
        return delta * per_sample(self.eps / norm, delta)

    def noise(self, like: Tensor) -> Tensor:
        """Uniform in the ball of radius :attr:`start`."""
        direction = F.normalize(torch.randn_like(like).flatten(1), dim=1)
        uniform = torch.rand(len(like), 1, device=like.device, dtype=like.dtype)
        radius: Tensor = self.start * uniform ** (1 / direction.shape[1])
        return (radius * direction).view_as(like)

    def norm(self, delta: Tensor) -> Tensor:
        """‖δ‖₂."""
        return vector_norm(delta.flatten(1), dim=1)

    def ascent(self, step: float) -> NormalizedGradient:
        """Along the gradient."""
        return NormalizedGradient(step)
