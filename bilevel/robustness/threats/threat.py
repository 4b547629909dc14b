"""Threat models: followers of a classifier whose y makes an image.

Threat    max over y of loss(f(perturbed(x, y)))   subject to   y in Y
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.experiment.settings import shown
from bilevel.problem import FollowerProblem, Sense
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.networks.precision import at_least_float32
from bilevel.robustness.threats.bounds import PIXELS
from bilevel.robustness.threats.checks import check_loss, check_values
from bilevel.robustness.threats.losses import OF_CLASSES, Loss, Targeted, cross_entropy


class Threat(FollowerProblem):
    """What an adversary may do to an image, described by a y that need not have its shape.

    A subclass implements :meth:`init`, :meth:`perturbed` and :meth:`project`. The leader's
    ``model`` maps images in [0, 1] to logits.

    Args:
        loss: The loss to maximise, a function of the logits; see
            ``bilevel.robustness.threats.losses``. One of your own reads whatever the model returns.

    Raises:
        BilevelError: If the loss cannot be called with an output and a batch.

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
        check_loss(loss)
        self.loss = loss

    @abstractmethod
    def perturbed(self, y: Any, batch: Any) -> Tensor:
        """The images that y makes, which attacks return and the classifier is judged on.

        Args:
            y: The follower's variable, as :meth:`init` returns it.
            batch: Clean images, as a :class:`Batch` or with further fields.

        Returns:
            ``(B, C, H, W)`` in [0, 1]; of other data, such as signals, what the model takes.
        """

    def check(self, batch: Batch | Targeted) -> None:
        """Checks that the batch has images in [0, 1].

        A threat model of other data overrides it; of a :class:`Perturbation` it is enough to give
        their bounds.
        """
        check_values(batch, PIXELS)

    def context(self, y: Any, batch: Batch) -> Tensor:
        """The perturbed image, the input of the paper's attackers."""
        return self.perturbed(y, batch)

    def objective(self, leader: Any, y: Any, batch: Batch) -> Tensor:
        """The loss at the perturbed image."""
        images = self.perturbed(y, batch)
        output = leader.model(images)
        if isinstance(output, Tensor) or self.loss in OF_CLASSES:
            output = at_least_float32(output)
            _check_gradient(images, output)
        return self.loss(output, batch)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={shown(value)}" for name, value in self._shown().items())
        return f"{type(self).__name__}({settings})"

    def _shown(self) -> dict[str, Any]:
        """The attributes that ``repr`` shows."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def loss_of(follower: FollowerProblem) -> Loss | None:
    """The loss that a follower maximises; None if it has an objective of its own."""
    if isinstance(follower, Threat) and type(follower).objective is Threat.objective:
        return follower.loss
    return None


def _check_gradient(images: Tensor, output: Tensor) -> None:
    """Checks that a gradient leads from the output to the images, where one is taken."""
    if torch.is_grad_enabled() and images.requires_grad and not output.requires_grad:
        raise BilevelError(
            "the classifier's output has no gradient in the image, which the attack follows: "
            "detach(), no_grad() or numpy cuts it off; give that part a differentiable "
            "approximation in the backward pass, or attack such a copy of the classifier, "
            "SolverAttack(…, surrogate=copy)"
        )
