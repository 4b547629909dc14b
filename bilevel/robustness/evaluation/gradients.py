"""Probes of a classifier's input gradient: is there one, and does the loss follow it?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel import frozen
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.results import Finding
from bilevel.robustness.threats.losses import Loss, cross_entropy, margin

# As many points as an evaluation may be off by; a network without a fault has none.
_BLIND = 0.02

# Measured: 0 to 0.05 for networks trained with and without adversaries on digits and CIFAR-10, 0.9
# and more for quantised, random and oscillating ones.
_MISPREDICTION = 0.5

# A change of one grey level is the smallest that an image of bytes can hold. float32 resolves what
# it does to the loss, networks are still straight over it, and rounding inputs to bytes, which
# hides nothing, is not taken for a fault, as it would be with a smaller step.
_STEP = 1 / 255


def has_gradients(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Finding:
    """Whether the cross entropy tells an attack where to go.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Returns:
        The finding, with the share of images whose gradient is zero, underflows or is no number.
    """
    gradients = [_gradient(model, batch, cross_entropy)[1] for batch in batches(images, batch_size)]
    largest = torch.cat(gradients).abs().flatten(1).amax(1)
    seen = (largest >= torch.finfo(largest.dtype).tiny) & largest.isfinite()
    blind = 1 - seen.double().mean().item()
    ok = blind <= _BLIND
    return Finding(
        "gradients exist",
        ok,
        f"none at {blind:.1%} of images",
        "The cross entropy has a gradient to follow."
        if ok
        else f"The cross entropy's gradient is zero or no number at {blind:.1%} of images, which "
        "FGSM and PGM therefore leave as they are. Look for very large logits (attacks on the "
        "margin do not mind them), quantisation, or a detached input.",
    )


def gradients_predict(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Finding:
    """Whether the margin changes as its gradient says when one sign step is taken.

    The median over the images of abs(Δ − ⟨∇, δ⟩) / ⟨∇, δ⟩, where δ is the step within [0, 1] and Δ
    what it does to the margin: the cross entropy is flat where a classifier is sure.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Returns:
        The finding.
    """
    errors = []
    for batch in batches(images, batch_size):
        before, gradient = _gradient(model, batch, margin)
        step = (batch.x + _STEP * gradient.sign()).clamp(0, 1) - batch.x
        with torch.no_grad(), frozen(model):
            change = margin(model(batch.x + step), batch) - before
        predicted = (gradient * step).flatten(1).sum(1)
        errors.append((change - predicted).abs() / predicted)
    # Without a gradient nothing is predicted. The median, since some images lie next to a kink.
    error = torch.cat(errors).nan_to_num(torch.inf).median().item()
    ok = error <= _MISPREDICTION
    return Finding(
        "gradients predict the loss",
        ok,
        f"off by {error:.0%}" if error < 10 else "off by more than tenfold",
        "A step of one grey level along the gradient changes the margin as the gradient says."
        if ok
        else "A step of one grey level along the gradient does not change the margin as the "
        "gradient says: gradients are masked. Look for quantisation, randomness or oscillation, "
        "give attacks a smooth stand-in of that layer (BPDA), and add square to the attacks.",
    )


def _gradient(model: nn.Module, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
    """A loss and its input gradient; zero where the loss does not depend on the input."""
    x = batch.x.clone().requires_grad_()
    with torch.enable_grad(), frozen(model):
        values = loss(model(x), batch)
        if not values.requires_grad:
            return values, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(values.sum(), x, materialize_grads=True)
    return values.detach(), gradient
