"""The training methods of the paper by name; each is a solver of the follower's problem.

plain                     no follower                       pgm(η, 0)
fgsm, pgm                 hand-designed                     pgm(ε, 1), pgm(η, 10)
K-step-pgm                the same with K steps             pgm(max(η, ε/K), K)
naive-l2l                 δ = g(x)                          Iterative(CNN(image), 1)
grad-l2l, grad-only-l2l   δ = g(x, ∇), δ = g(∇)             Iterative(CNN(…), 1)
K-step-l2l, …             δ ← Π(δ + g(x + δ, ∇)), K times   Iterative(CNN(…), K)
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bilevel import Iterative, Solver
from bilevel.errors import raise_unknown
from bilevel.robustness.networks.failures import explain_misfit
from bilevel.robustness.threats.norms import Norm, ball_of
from bilevel.updates import CNN, ConvRNN, Update
from bilevel.updates.learned import Inputs
from bilevel.updates.normalize import Over

METHODS = (
    "plain",
    "fgsm",
    "pgm",
    "naive-l2l",
    "grad-l2l",
    "two-step-l2l",
    "grad-only-l2l",
    "two-step-grad-only-l2l",
)
"""The methods of Table 2; K in ``K-step-pgm``, ``K-step-l2l``, … is a number, or ``two``."""

TRAINING_STEP = 0.007 / 0.031
"""The paper's step size in training, as a share of its ε."""

EVALUATION_STEP = 0.003 / 0.031
"""The paper's step size in evaluation, as a share of its ε."""

EVALUATION_START = 1e-4
"""The radius of the ball from which PGM starts in evaluation (Sec. 4)."""

Form = Literal["wide", "slim", "slim-no-skip", "two-layer", "conv-rnn"]
"""An attacker's network: a form of :class:`~bilevel.updates.CNN`, or the recurrent one."""

_MULTI_STEP = re.compile(r"(two|[1-9]\d*)-step-(pgm|l2l|grad-only-l2l)")

_NAMED = {
    "1-step-pgm": "fgsm",
    "10-step-pgm": "pgm",
    "1-step-l2l": "grad-l2l",
    "1-step-grad-only-l2l": "grad-only-l2l",
}
"""Numbers of steps that have a name of their own."""

_STEPS = {"plain": 0, "pgm": 10}
"""Where it is neither one nor in the name."""


@dataclass(frozen=True)
class Attacker:
    """The attacker network of a learned method.

    Args:
        form: See :data:`Form`.
        width: Channels of its first layer, of a slim one half of them (64 gives the paper's), of a
            recurrent one those of its state; scale it with the classifier, see
            :func:`fitting_width`.
        normalize: Gradients are divided by the maximum of each ``"sample"``, or of the ``"batch"``
            as in the authors' code.
        gradient_skip: Initial value of the learnable s in tanh(net + s·sign ∇), in L2 of that in
            tanh(net + s·∇ / max|∇|); None for no skip.
    """

    form: Form = "wide"
    width: int = 64
    normalize: Over = "sample"
    gradient_skip: float | None = None

    def update(self, channels: int, eps: float, inputs: Inputs, norm: Norm = "linf") -> Update:
        """The attacker as an update rule.

        Args:
            channels: Channels of the images.
            eps: ε, the largest change of a pixel in one step.
            inputs: Its inputs: the image, the gradient, or both.
            norm: The norm of the threat model.

        Returns:
            A new network.
        """
        network: Callable[..., Update]
        if self.form == "conv-rnn":
            network = partial(ConvRNN, hidden=self.width)
        else:
            network = partial(CNN, form=self.form, width=self.width)
        return network(
            channels,
            eps,
            inputs=inputs,
            normalize=self.normalize,
            gradient_skip=self.gradient_skip if "gradient" in inputs else None,
            direction="sign" if norm == "linf" else "max-abs",
        )


def fitting_width(
    attacker: Attacker, classifier: nn.Module, shape: tuple[int, int, int], share: float = 0.1
) -> int:
    """The width at which the attacker's forward pass costs a share of the classifier's.

    That of an attacker which reads image and gradient: one that reads less has the same width, so
    that methods differ in what they see alone.

    Args:
        attacker: The attacker; its width is ignored.
        classifier: The classifier.
        shape: Channels, height and width of the images.
        share: The share, in multiply–adds.

    Returns:
        The largest of 4, 8, 12, 16, 24, 32, 48, 64 that does not cost more, and at least 4.

    Raises:
        BilevelError: If the classifier is for images of another shape.

    Example:
        >>> from bilevel.robustness import build_model
        >>> with torch.device("meta"):
        ...     resnet = build_model("resnet18", channels=3, classes=10)
        >>> fitting_width(Attacker("wide"), resnet, (3, 32, 32))
        8
    """
    # Where it is: on the meta device a network fails that holds a constant, or looks at its images.
    place = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    with explain_misfit(shape):
        limit = share * _cost(copy.deepcopy(classifier), torch.zeros(1, *shape, device=place))
    images = torch.zeros(1, *shape, device="meta")
    chosen = 4
    for width in (8, 12, 16, 24, 32, 48, 64):
        with torch.device("meta"):
            update = replace(attacker, width=width).update(shape[0], 1.0, ("context", "gradient"))
        if _cost(update, images, images, images, None) <= limit:
            chosen = width
    return chosen


def _cost(network: nn.Module, *inputs: Tensor | None) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which takes long

    # Attention by its formula: the fused one of the CPU is not counted.
    attention = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), attention:
        network.eval()(*inputs)
    return counter.get_total_flops()


def is_learned(method: str) -> bool:
    """Whether the method trains an attacker.

    Args:
        method: A name that :func:`make_solver` knows.

    Returns:
        False for hand-designed methods.
    """
    return method.endswith("l2l")


def make_solver(
    method: str,
    *,
    eps: float,
    channels: int,
    attacker: Attacker,
    norm: Norm = "linf",
    warm_start: bool = False,
) -> Solver:
    """The solver of a training method.

    Args:
        method: One of :data:`METHODS`, or one with K steps such as ``"3-step-l2l"``.
            Steps of PGM have the size 0.007/0.031·ε as in the paper, but ε/K where K of these would
            not reach the boundary.
        eps: ε of the threat model.
        channels: Channels of the images.
        attacker: The attacker of a learned method.
        norm: The norm of the threat model.
        warm_start: Whether attacks start at the last answer for the image: one step of PGM then has
            the size ε/2, since one of ε would only go from corner to corner of the ball.

    Returns:
        A new solver.

    Raises:
        BilevelError: If there is no such method; the message suggests the closest name.

    Example:
        >>> solver = make_solver("two-step-l2l", eps=0.031, channels=3, attacker=Attacker())
        >>> solver.steps
        2
    """
    check_method(method)
    multi_step = _MULTI_STEP.fullmatch(method)
    steps = int(multi_step[1].replace("two", "2")) if multi_step else _STEPS.get(method, 1)
    if not is_learned(method):
        share = max(TRAINING_STEP, 1 / max(steps, 2 if warm_start else 1))
        return ball_of(norm)(eps).pgm(share * eps, steps)
    inputs: Inputs = ("context", "gradient")
    if method == "naive-l2l":
        inputs = ("context",)
    elif "grad-only" in method:
        inputs = ("gradient",)
    return Iterative(attacker.update(channels, eps, inputs, norm), steps)


def check_method(method: str) -> str:
    """Checks that there is a training method of that name.

    Args:
        method: A name.

    Returns:
        The one name of the method, by which two names of the same method are told.

    Raises:
        BilevelError: If there is none; the message suggests the closest name.

    Example:
        >>> check_method("10-step-pgm"), check_method("2-step-l2l"), check_method("3-step-l2l")
        ('pgm', 'two-step-l2l', '3-step-l2l')
    """
    if not (method in METHODS or _MULTI_STEP.fullmatch(method)):
        raise_unknown("method", method, (*METHODS, "two-step-pgm"))
    return _NAMED.get(method, re.sub("^2-step", "two-step", method))
