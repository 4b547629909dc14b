"""Helpers that the attacks share: operations sample by sample, and checks."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import BilevelError, describe
from bilevel.robustness.data.batches import Batch, per_sample
from bilevel.robustness.threats.losses import Targeted
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.solvers import Oracle


def choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``torch.where`` with one condition a sample; it does not wait for the device.

    Args:
        mask: Which samples are taken from ``yes``, ``(B,)`` bool.
        yes: ``(B, ...)``.
        no: ``(B, ...)``.

    Returns:
        ``(B, ...)``.

    Example:
        >>> choose(torch.tensor([True, False]), torch.ones(2, 3), torch.zeros(2, 3))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """
    return torch.where(per_sample(mask, yes), yes, no)


def better(oracle: Oracle, point: Tensor, best: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the one of two points with the larger gain.

    Args:
        oracle: The problem.
        point: A new point, ``(B, ...)``; its gain is evaluated.
        best: The point so far, ``(B, ...)``.
        gain: Its gain, ``(B,)``.

    Returns:
        The better points and their gains; ``best`` where they are equal.
    """
    value = oracle.gain(point)
    improves = value > gain
    return choose(improves, point, best), choose(improves, value, gain)


def rounding(dtype: torch.dtype) -> float:
    """How far rounding may take an adversarial image out of the threat model.

    Args:
        dtype: The type of the images.

    Returns:
        A few units in the last place of pixels in [0, 1].

    Example:
        >>> rounding(torch.float32), rounding(torch.float16)
        (1e-06, 0.0009765625)
    """
    return max(1e-6, torch.finfo(dtype).eps)


def check_classes(batch: Batch | Targeted, otherwise: str) -> None:
    """Checks that the labels are a class for each image.

    Args:
        batch: The images.
        otherwise: What helps too if they are not, the last clause of the error.

    Raises:
        BilevelError: If they are not int64 of shape (B,).
    """
    labels: object = batch.y  # of another task anything, such as a list of boxes
    size = len(batch.x)
    if isinstance(labels, Tensor):
        if labels.dtype == torch.int64 and labels.shape == (size,):
            return
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
    else:
        found = describe(labels)
    raise BilevelError(
        f"labels are {found}: each image has one class; give int64 of shape ({size},), or "
        f"{otherwise}"
    )


def check_threat(clean: Tensor, adversarial: Tensor, threat: Perturbation) -> None:
    """Checks that adversarial images lie in the ball around the clean ones and in [0, 1].

    Args:
        clean: ``(B, C, H, W)`` in [0, 1].
        adversarial: What an attack returned for them.
        threat: The ball.

    Raises:
        BilevelError: If an image lies outside by more than rounding, or a pixel is NaN.
    """
    slack = rounding(clean.dtype)
    norm = threat.norm(adversarial - clean).max().item()
    rounded = threat.norm(torch.full_like(clean[:1], slack)).item()  # each pixel may be off by it
    outside = max(0.0, -adversarial.min().item(), adversarial.max().item() - 1)
    if not (norm <= threat.eps + rounded and outside <= slack):
        raise BilevelError(
            f"it left the threat model (‖δ‖{threat.index} = {norm:.4g} where ε = {threat.eps:g}, "
            f"pixels {outside:.2g} outside [0, 1]): give it the ε of the evaluation"
        )
