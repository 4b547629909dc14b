r"""Adversarial interpolation training (AIT): a game that is not zero-sum (Algorithms 2 and 4).

    leader     min over θ of  CE(f(x̃_i), ỹ_i),     ỹ_i = (1 − ε_y) y_i + ε_y (1 − y_j) / (K − 1)
    follower   min over x̃_i of  1 − cos(h(x̃_i), h(x_j)),     ‖x̃_i − x_i‖∞ ≤ ε

The follower moves the features h of each image toward those of its partner x_j; the label ỹ_i moves
away from the partner's class. Zhang & Xu (2020), "Adversarial interpolation training", is the
original; the paper prints the follower with the opposite sign (eq. 6), ``sense="max"`` here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.arguments import one_of
from bilevel.errors import BilevelError
from bilevel.problem import LeaderProblem, Sense
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.networks.classifier import Classifier
from bilevel.robustness.networks.precision import at_least_float32
from bilevel.robustness.threats.losses import check_several
from bilevel.robustness.threats.perturbation import Linf


def _other_class(y: Tensor) -> Tensor:
    """The next image of another class; the next one if the batch has a single class."""
    rows = torch.arange(len(y), device=y.device)
    order = (rows.unsqueeze(1) + rows.roll(-1)) % len(y)  # row i: i + 1, i + 2, …, i
    first = (y[order] != y.unsqueeze(1)).byte().argmax(1, keepdim=True)
    return order.gather(1, first).squeeze(1)


PAIRINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "reversed": lambda y: torch.arange(len(y) - 1, -1, -1, device=y.device),
    "next": lambda y: torch.arange(len(y), device=y.device).roll(-1),
    "other-class": _other_class,
}
"""From the labels of a batch to the position of each image's partner in it. In shuffled batches
``reversed``, the original's choice, and ``next`` give random pairs."""


class Interpolation(Linf):
    """A perturbation that moves an image's features toward those of another image.

    The partner is an image of the same batch, ``reversed`` in the middle of an odd one the image
    itself. So an accuracy under this attack depends on the size and order of the batches, and is no
    measure to compare classifiers by.

    Args:
        eps: ε of the L∞ ball.
        layer: The module of the classifier whose output, averaged over the pixels, is the feature
            vector; ``"trunk"`` is the last layer before the head of the kit's classifiers.
        pairing: A name of :data:`PAIRINGS`.
        sense: ``"min"`` moves toward the partner, as the original and the authors' code do;
            ``"max"`` away from it, as eq. 6 and Algorithm 4 print.
        start: Radius of the random start; ε unless another is given.

    Raises:
        BilevelError: If there is no such pairing.

    Example:
        >>> from bilevel.robustness import build_model
        >>> class Leader: model = build_model("small-cnn", channels=1, classes=10)
        >>> batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
        >>> follower = Interpolation(0.1)
        >>> follower.objective(Leader, follower.init(batch), batch).shape
        torch.Size([4])
    """

    def __init__(
        self,
        eps: float,
        *,
        layer: str = "trunk",
        pairing: str = "reversed",
        sense: Sense = "min",
        start: float | None = None,
    ) -> None:
        super().__init__(eps, start=eps if start is None else start)
        self.layer = layer
        self.pairing = one_of("pairing", pairing, tuple(PAIRINGS))
        self.sense = sense

    def objective(self, leader: Any, y: Tensor, batch: Batch) -> Tensor:
        """1 − cos(h(x_i + δ_i), h(x_j)), the partner's features held constant."""
        with torch.no_grad():
            images = batch.x.clone()  # the classifier may normalise them in place
            target = _features(leader.model, self.layer, images)[self.partner(batch)]
        features = _features(leader.model, self.layer, batch.x + y)
        return 1 - F.cosine_similarity(features, target)

    def partner(self, batch: Batch) -> Tensor:
        """The partner of each image.

        Args:
            batch: The images.

        Returns:
            Positions in the batch, ``(B,)`` int64.
        """
        return PAIRINGS[self.pairing](batch.y)


class InterpolatedLabels(LeaderProblem):
    """A classifier that learns the label ỹ of each interpolated image.

    Args:
        model: The classifier.
        follower: The follower, which pairs the images.
        epsilon_y: ε_y in [0, 1], how far a label moves away from the partner's; 0.5 in the paper.

    Raises:
        BilevelError: If ε_y is not in [0, 1].

    Example:
        >>> leader = InterpolatedLabels(nn.Flatten(), Interpolation(0.1), epsilon_y=0.5)
        >>> batch = Batch(torch.zeros(2, 1, 1, 3), torch.tensor([0, 1]))
        >>> leader.targets(batch, classes=3)
        tensor([[0.7500, 0.0000, 0.2500],
                [0.0000, 0.7500, 0.2500]])
    """

    def __init__(self, model: nn.Module, follower: Interpolation, *, epsilon_y: float) -> None:
        super().__init__()
        if not 0 <= epsilon_y <= 1:
            raise BilevelError(
                f"epsilon_y is {epsilon_y}: it is the weight of the partner's term in a label; "
                "give 0 to 1, 0.5 as in the paper"
            )
        self.model = model
        self.follower = follower
        self.epsilon_y = epsilon_y

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        """Soft cross entropy at x + δ, the mean over the batch."""
        logits = at_least_float32(self.model(batch.x + y))
        check_several(logits)
        return F.cross_entropy(logits, self.targets(batch, logits.shape[1]).to(logits.dtype))

    def targets(self, batch: Batch, classes: int) -> Tensor:
        """ỹ_i = (1 − ε_y) y_i + ε_y (1 − y_j) / (K − 1).

        Args:
            batch: The images.
            classes: K.

        Returns:
            Probabilities, ``(B, K)``.
        """
        own = F.one_hot(batch.y, classes)
        other = own[self.follower.partner(batch)]
        return (1 - self.epsilon_y) * own + self.epsilon_y * (1 - other) / (classes - 1)


def _features(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """A layer's output for the images, averaged over the pixels: ``(B, width)``."""
    # The trunk alone, compiled if the classifier is; but a hook, as of SolverAttack with
    # keep_broken, is to see the logits at every point.
    if layer == "trunk" and isinstance(model, Classifier) and not model._forward_hooks:
        return _averaged(model.trunk(model.normalize(x)))
    return _recorded(model, layer, x)


def _averaged(output: Tensor) -> Tensor:
    """Features of their own memory, which a layer that goes on in place does not change."""
    output = at_least_float32(output)
    return output.flatten(2).mean(2) if output.ndim > 2 else output.clone()


def _recorded(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """A layer's features, in a forward pass of the whole classifier."""
    try:
        module = model.get_submodule(layer)
    except AttributeError as error:
        names = ", ".join(name for name, _ in model.named_children())
        raise BilevelError(
            f"the classifier has no layer {layer!r}: its features are compared; choose one of "
            f"{names}, or a module inside"
        ) from error
    features: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, out: features.append(_averaged(out)))
    try:
        # A compiled call may have been traced without the hook, and would not run it.
        with torch.compiler.set_stance("force_eager"):
            model(x)
    finally:
        handle.remove()
    if not features:
        raise BilevelError(
            f"the classifier's layer {layer!r} is never called: its features are compared; choose "
            "a module that the forward pass calls"
        )
    return features[-1]
