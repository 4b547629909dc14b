"""Probes of a classifier's input gradient: whether it exists and whether it predicts the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel import BilevelError, frozen
from bilevel.errors import first_line
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.evaluation.probed import Probed
from bilevel.robustness.evaluation.results import Finding, finding
from bilevel.robustness.evaluation.tolerance import share
from bilevel.robustness.threats.losses import Loss, cross_entropy, margin

# The share of images that may lack a gradient: the tolerance of the verdict. Sound networks have 0.
_MAX_MISSING = 0.02

# Measured: 0 to 0.05 for networks trained with and without adversaries on digits and CIFAR-10, 0.9
# and more for quantised, random and oscillating ones.
_MAX_ERROR = 0.5

# One grey level, the smallest change of an 8-bit image. float32 resolves the change of the loss,
# networks are nearly linear over it, and a network that rounds its inputs to 8 bits, which masks no
# gradient, passes, as it would not with a smaller step.
_STEP = 1 / 255

# Random steps of an image: few, since the median over images counts.
_DIRECTIONS = 4


def has_gradients(probed: Probed) -> Finding:
    """Whether the cross entropy has an input gradient."""
    gradients = [
        _gradient(probed.model, batch, cross_entropy)[1]
        for batch in batches(probed.images, probed.batch_size)
    ]
    largest = torch.cat(gradients).abs().flatten(1).amax(1)
    exists = (largest >= torch.finfo(largest.dtype).tiny) & largest.isfinite()
    missing = share(~exists)
    ok = missing <= _MAX_MISSING
    return finding(
        "gradients exist",
        ok,
        f"none at {missing:.1%} of images",
        "The cross entropy has a gradient to follow.",
        f"The cross entropy's gradient is zero or not finite at {missing:.1%} of images, "
        "which FGSM and PGM cannot attack. Look for very large logits (the margin loss is not "
        "affected by them), half precision (compute in float32), quantisation, or a detached "
        "input.",
    )


def gradients_predict(probed: Probed) -> Finding:
    """Whether the gradient of the margin predicts its change over steps of one grey level."""
    # Along its signs, and in random directions: the gradient of a straight-through layer may be
    # right along itself and wrong in all others, to which attacks are led.
    parts = batches(probed.images, probed.batch_size)
    along, at_random = zip(*(_errors(probed.model, batch) for batch in parts), strict=True)
    # A zero gradient predicts nothing: 0/0. The median, since some images lie next to a kink.
    medians = [torch.cat(e).nan_to_num(torch.inf).median().item() for e in (along, at_random)]
    error = max(medians)
    ok = error <= _MAX_ERROR
    return finding(
        "gradients predict the loss",
        ok,
        f"off by {error:.0%}" if error < 10 else "off by more than tenfold",
        "The gradient predicts the change of the margin over steps of one grey level.",
        "The gradient does not predict the change of the margin over a step of one grey "
        "level: gradients are masked. Look for quantisation, randomness, oscillation, half "
        "precision, or a layer whose backward pass is not its derivative (straight-through). While "
        "the layer stays this item fails, and the worst case is an upper bound: add attacks "
        "without gradients (square), and through a differentiable approximation of the layer "
        "(BPDA), SolverAttack(…, surrogate=approximation).",
    )


def _errors(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The relative errors of what the gradient predicts, along its signs and at random."""
    # Of the margin, since the cross entropy would saturate, where all steps stay within [0, 1].
    inner = batch._replace(x=batch.x.clamp(_STEP, 1 - _STEP))
    here, gradient = _gradient(model, inner, margin)
    along = _error_along_signs(model, inner, here, gradient)
    return along, _error_at_random(model, inner, here, gradient)


def _error_along_signs(model: nn.Module, batch: Batch, here: Tensor, gradient: Tensor) -> Tensor:
    """|Δ − ⟨∇, δ⟩| / ⟨∇, δ⟩ of each image, where Δ is the change of the margin over a sign step."""
    predicted = _STEP * gradient.abs().flatten(1).sum(1)
    return (_margin_after(model, batch, gradient.sign()) - here - predicted).abs() / predicted


def _error_at_random(model: nn.Module, batch: Batch, here: Tensor, gradient: Tensor) -> Tensor:
    """‖Δ − ⟨∇, δ⟩‖ / ‖Δ‖ of each image over random δ, where Δ is half the change from −δ to δ."""
    # Less the second difference, that of a kink or of rounding: at a kink both slopes are right.
    generator = torch.Generator().manual_seed(0)
    errors, changes = torch.zeros_like(here), torch.zeros_like(here)
    for _ in range(_DIRECTIONS):
        signs = torch.randint(2, batch.x.shape, generator=generator).to(batch.x) * 2 - 1
        ahead, behind = (_margin_after(model, batch, s * signs) for s in (1, -1))
        change, bend = (ahead - behind) / 2, (ahead + behind - 2 * here).abs()
        error = (change - _STEP * (gradient * signs).flatten(1).sum(1)).abs() - bend
        errors += error.clamp(min=0).square()
        changes += change.square()
    return (errors / changes).sqrt()


def _margin_after(model: nn.Module, batch: Batch, signs: Tensor) -> Tensor:
    with torch.no_grad(), frozen(model):
        return margin(model(batch.x + _STEP * signs), batch)


def _gradient(model: nn.Module, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
    """A loss and its input gradient; zero where the loss does not depend on the input."""
    x = batch.x.clone().requires_grad_()
    with torch.enable_grad(), frozen(model):
        try:
            values = loss(model(x.clone()), batch)  # it may normalise in place, which no leaf bears
        except RuntimeError as error:
            if "requires grad" not in str(error):
                raise
            raise BilevelError(
                f"the classifier takes no images that need a gradient ({first_line(error)}): an "
                "evaluation looks for one; detach() them inside, and it says that there is none"
            ) from error
        if not values.requires_grad:
            return values, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(values.sum(), x, materialize_grads=True)
    return values.detach(), gradient
