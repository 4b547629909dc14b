"""The losses that attacks maximise: functions of the logits, one value a sample.

cross_entropy           −log softmax(z)_y                       its gradient vanishes where sure
margin                  max_{k≠y} z_k − z_y                     positive exactly where misclassified
dlr                     (max_{k≠y} z_k − z_y) / (z_π1 − z_π3)   the margin, invariant to scale
targeted_cross_entropy  log softmax(z)_t                        to be classified as t
targeted_margin         z_t − z_y                               to rate t above y
targeted_dlr            (z_t − z_y) / (z_π1 − (z_π3 + z_π4)/2)  the same, invariant to scale

with z_π1 ≥ z_π2 ≥ … the sorted logits. The ratios are those of Croce & Hein (2020), "Reliable
evaluation of adversarial robustness", eqs. 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.errors import BilevelError, describe
from bilevel.robustness.data.batches import Batch


class Targeted(NamedTuple):
    """A batch of labelled images, each with the target class of an attack.

    Attributes:
        x: Images, ``(B, C, H, W)`` float in [0, 1].
        y: Their classes, ``(B,)`` int64.
        target: Their target classes, ``(B,)`` int64.
    """

    x: Tensor
    y: Tensor
    target: Tensor


Loss = Callable[[Any, Any], Tensor]
"""From logits ``(B, K)`` and their batch to one value a sample, ``(B,)``, to be maximised. One of
your own may read other outputs and batches."""


def cross_entropy(logits: Tensor, batch: Batch | Targeted) -> Tensor:
    """Cross entropy, the objective of PGM (eq. 3).

    Args:
        logits: ``(B, K)``.
        batch: What they are the logits of.

    Returns:
        One value a sample, ``(B,)``.

    Raises:
        BilevelError: If there is a single logit a sample.
    """
    check_several(logits)
    return F.cross_entropy(logits, batch.y, reduction="none")


def margin(logits: Tensor, batch: Batch | Targeted) -> Tensor:
    """The largest wrong logit minus the true one: positive exactly where misclassified.

    Args:
        logits: ``(B, K)``.
        batch: What they are the logits of.

    Returns:
        One value a sample, ``(B,)``.

    Raises:
        BilevelError: If there is a single logit a sample.

    Example:
        >>> batch = Batch(torch.zeros(2, 1, 1, 1), torch.tensor([0, 0]))
        >>> margin(torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 0.5]]), batch)
        tensor([-1.,  1.])
    """
    check_several(logits)
    true_class = F.one_hot(batch.y, logits.shape[1]).bool()
    return logits.masked_fill(true_class, -torch.inf).amax(1) - _logit(logits, batch.y, "label")


def dlr(logits: Tensor, batch: Batch | Targeted) -> Tensor:
    """The difference of logits ratio: the margin over the gap of the first and third logit.

    Args:
        logits: ``(B, K)``, of three classes or more.
        batch: What they are the logits of.

    Returns:
        One value a sample, ``(B,)``; the same for logits shifted or scaled.

    Raises:
        BilevelError: If there are fewer than three classes.

    Example:
        >>> batch = Batch(torch.zeros(1, 1, 1, 1), torch.tensor([0]))
        >>> dlr(torch.tensor([[3.0, 2.0, 1.0]]), batch).item()
        -0.5
    """
    gap, top = margin(logits, batch), _largest(logits, 3)
    return gap / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, batch: Batch | Targeted) -> Tensor:
    """The difference of logits ratio toward the class ``batch.target``.

    Args:
        logits: ``(B, K)``, of four classes or more.
        batch: What they are the logits of, with targets.

    Returns:
        One value a sample, ``(B,)``.

    Raises:
        BilevelError: If there are fewer than four classes, or as :func:`targeted_margin` does.

    Example:
        >>> batch = Targeted(torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([1]))
        >>> targeted_dlr(torch.tensor([[4.0, 2.0, 1.0, 1.0]]), batch).item()
        -0.6666666865348816
    """
    gap, top = targeted_margin(logits, batch), _largest(logits, 4)
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def targeted_cross_entropy(logits: Tensor, batch: Batch | Targeted) -> Tensor:
    """Minus the cross entropy of the class ``batch.target`` (Kurakin et al., 2017).

    Args:
        logits: ``(B, K)``.
        batch: What they are the logits of, with targets.

    Returns:
        The log-probability of each sample's target, ``(B,)``.

    Raises:
        BilevelError: As :func:`targeted_margin`.

    Example:
        >>> batch = Targeted(torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([1]))
        >>> targeted_cross_entropy(torch.tensor([[0.0, 0.0]]), batch).exp().item()
        0.5
    """
    return _logit(logits.log_softmax(1), _target(logits, batch), "target")


def targeted_margin(logits: Tensor, batch: Batch | Targeted) -> Tensor:
    """The logit of the class ``batch.target`` minus that of the label.

    Args:
        logits: ``(B, K)``.
        batch: What they are the logits of, with targets.

    Returns:
        One value a sample, ``(B,)``, positive where the target beats the label.

    Raises:
        BilevelError: If there is a single logit a sample, the batch has no targets, they are not
            int64 of shape (B,), or, on a CPU, a target or label is none of the classes.

    Example:
        >>> batch = Targeted(torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([1]))
        >>> targeted_margin(torch.tensor([[3.0, 1.0, 2.0]]), batch).item()
        -2.0
    """
    target = _target(logits, batch)
    return _logit(logits, target, "target") - _logit(logits, batch.y, "label")


def check_one_each(kind: str, classes: object, size: int, remedy: str) -> None:
    """Checks that there is a class for each image.

    Args:
        kind: What they are, in the plural.
        classes: The classes, or whatever was given for them.
        size: B, the number of images.
        remedy: The last clause of the error.

    Raises:
        BilevelError: If they are not int64 of shape (B,).
    """
    if isinstance(classes, Tensor):
        if classes.dtype == torch.int64 and classes.shape == (size,):
            return
        found = f"{classes.dtype} of shape {tuple(classes.shape)}"
    else:  # of another task anything, such as a list of boxes
        found = describe(classes)
    raise BilevelError(
        f"{kind} are {found}: each image has one class; give int64 of shape ({size},), {remedy}"
    )


def check_several(logits: Tensor) -> None:
    """Refuses a single logit, whose cross entropy is always 0.

    Args:
        logits: ``(B, K)``.

    Raises:
        BilevelError: If K is 1.
    """
    if logits.shape[1:] == (1,):
        raise BilevelError(
            "the classifier has one logit: the largest of one is always class 0, so that no attack "
            "would move and no label be learned; give two, torch.cat([0 * z, z], 1)"
        )


UNTARGETED: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
"""The losses here that read no target, by name."""

TARGETED: tuple[Loss, ...] = (targeted_cross_entropy, targeted_dlr, targeted_margin)
"""The losses here that read one."""

OF_CLASSES: tuple[Loss, ...] = (*UNTARGETED.values(), *TARGETED)
"""The losses here, whose labels are classes; one of your own may have others."""

_TINY = 1e-12  # added to denominators, which are zero for equal logits


def _target(logits: Tensor, batch: Batch | Targeted) -> Tensor:
    """The target classes of a batch."""
    check_several(logits)
    target = getattr(batch, "target", None)
    if target is None:
        raise BilevelError(
            "a targeted loss got a batch without targets: it moves toward one class; give "
            "Targeted(x, y, target)"
        )
    # Of a single one all images would get the logit of the first.
    check_one_each("targets", target, len(logits), "such as torch.full_like(y, 2)")
    return target


def _logit(logits: Tensor, classes: Tensor, kind: str) -> Tensor:
    """Each sample's logit of its class."""
    try:
        return logits.gather(1, classes.unsqueeze(1)).squeeze(1)
    except RuntimeError as error:  # on a GPU the device asserts it, too late for words
        if "out of bounds" not in str(error):
            raise
        raise BilevelError(
            f"a {kind} is no class: the classifier has {logits.shape[1]} of them, numbered from 0; "
            f"give {kind}s among these"
        ) from error


def _largest(logits: Tensor, count: int) -> Tensor:
    """Each sample's largest logits, in descending order."""
    if logits.shape[1] < count:
        raise BilevelError(
            f"the classifier has {logits.shape[1]} classes, the difference of logits ratio needs "
            f"{count}: attack it with the margin"
        )
    return logits.topk(count, dim=1).values
