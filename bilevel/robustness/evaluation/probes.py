"""What a classifier is asked before it is attacked: could an attack on it mean anything?

Each probe costs a few passes over a few images and answers with a finding. What attacks make of the
classifier is judged in :mod:`bilevel.robustness.evaluation.verdict`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel import BilevelError, NonFiniteError, frozen
from bilevel.robustness.data.batches import batches
from bilevel.robustness.data.images import ImageSet, sample
from bilevel.robustness.evaluation.accuracy import logits_of
from bilevel.robustness.evaluation.gradients import gradients_predict, has_gradients
from bilevel.robustness.evaluation.ranges import takes_unit_interval
from bilevel.robustness.evaluation.results import Finding

# By how much of their spread logits may change. In a repeated pass not at all, but for kernels that
# add in any order. In another batch a little: its shape chooses the kernel, and TF32 has 3 digits.
_REPEATED = 1e-3
_REARRANGED = 1e-2


def probe(
    model: nn.Module, images: ImageSet, *, size: int = 256, batch_size: int = 256
) -> tuple[Finding, ...]:
    """Asks everything.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: Images on its device.
        size: How many of them are asked about.
        batch_size: Images a batch.

    Returns:
        The findings.

    Raises:
        BilevelError: If it cannot be evaluated at all, see :func:`check_classifier`.

    Example:
        >>> images = ImageSet(torch.tensor([0, 255]).byte().view(2, 1, 1, 1), torch.arange(2), "ab")
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[-2.0], [2.0]]))
        >>> _ = model[1].bias.data.copy_(torch.tensor([1.0, -1.0]))
        >>> [finding.item for finding in probe(model, images) if not finding.ok]
        []
    """
    check_classifier(model, images, batch_size)
    few = sample(images, size)
    probes = (
        gives_logits,
        takes_unit_interval,
        repeats_itself,
        ignores_the_batch,
        has_gradients,
        gradients_predict,
    )
    return tuple(ask(model, few, batch_size) for ask in probes)


def check_classifier(model: nn.Module, images: ImageSet, batch_size: int = 256) -> None:
    """Checks that the classifier answers clean images with finite numbers, one a class.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Raises:
        BilevelError: If there are no images, a label is none of their K classes, or the output is
            not ``(B, K)``.
        NonFiniteError: If a logit is NaN or infinite.
    """
    if not len(images):
        raise BilevelError(
            "the image set is empty: a classifier cannot be evaluated; give one image or more"
        )
    low, high = (int(label) for label in images.labels.aminmax())
    if low < 0 or high >= len(images.classes):
        raise BilevelError(
            f"the labels run from {low} to {high}, but there are {len(images.classes)} classes: "
            f"a label is the position of a class; give 0 to {len(images.classes) - 1}"
        )
    few = next(batches(images, 2))
    with torch.no_grad(), frozen(model):
        answer = model(few.x)
    classes = len(images.classes)
    shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if shape != (len(few.y), classes):
        raise BilevelError(
            f"the classifier answers {len(few.y)} images with {shape}: an attack needs one logit "
            f"for each of the images' {classes} classes; return (B, {classes}), or name the images "
            "that it was trained on"
        )
    logits = logits_of(model, images, batch_size)
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise NonFiniteError(
            f"the classifier's logits are NaN or infinite on {bad} of {len(images)} clean images: "
            "these are neither right nor wrong; check its weights and its input layer, or go back "
            "to an earlier checkpoint"
        )


def gives_logits(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Finding:
    """Whether the output could be anything but probabilities, which weaken the cross entropy.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Returns:
        The finding.
    """
    output = logits_of(model, images, batch_size)
    lowest, off = output.min().item(), (output.sum(1) - 1).abs().max().item()
    ok = lowest < 0 or off > 0.01  # a sum of probabilities in bfloat16 has two digits
    return Finding(
        "output is logits",
        ok,
        f"min {lowest:.2g}, sum off 1 by {off:.2g}",
        "The output is no probability distribution."
        if ok
        else "The classifier returns probabilities, whose cross entropy is nearly flat: attacks "
        "find less than there is. Return what goes into the softmax.",
    )


def repeats_itself(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Finding:
    """Whether the same images get the same logits again.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Returns:
        The finding.
    """
    labels, logits = _repetition(model, images, batch_size)
    ok = logits <= _REPEATED
    return Finding(
        "output is deterministic",
        ok,
        _figure(labels, logits),
        "The same images get the same answer again."
        if ok
        else "The same images get another answer when asked again: gradients are random as well, "
        "and what withstands an attack once need not do so twice. Take the randomness out, or "
        "attack the mean over many passes (expectation over transformation).",
    )


def ignores_the_batch(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Finding:
    """Whether an image's logits are the same beside other images and in another place.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Returns:
        The finding.
    """
    backwards = torch.arange(len(images)).flip(0)
    # In pairs and not alone, because BatchNorm refuses to take statistics of a single value; of an
    # odd number, three are together.
    pairs = backwards.tensor_split(max(1, len(images) // 2))
    paired = torch.cat([logits_of(model, images.subset(pair)) for pair in pairs])[backwards]
    labels, logits = _change(logits_of(model, images, batch_size), paired)
    # What a mere repetition changes is not the batch's doing.
    ok = logits <= max(_REARRANGED, 3 * _repetition(model, images, batch_size)[1])
    return Finding(
        "output is independent of the batch",
        ok,
        _figure(labels, logits),
        "An image gets the same answer whatever is beside it."
        if ok
        else "An image gets another answer beside other images: accuracy depends on how batches "
        "are composed. Look for BatchNorm that takes the batch's statistics, or preprocessing "
        "that does.",
    )


def _change(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Share of labels that change, and the largest change of a logit over the logits' spread."""
    labels = (first.argmax(1) != second.argmax(1)).double().mean().item()
    spread = (first.amax(1) - first.amin(1)).median().clamp(min=torch.finfo(first.dtype).tiny)
    return labels, ((first - second).abs().max() / spread).item()


def _repetition(model: nn.Module, images: ImageSet, batch_size: int) -> tuple[float, float]:
    """The largest :func:`_change` in three repeated passes."""
    first = logits_of(model, images, batch_size)
    labels, logits = zip(
        *(_change(first, logits_of(model, images, batch_size)) for _ in range(3)), strict=True
    )
    return max(labels), max(logits)


def _figure(labels: float, logits: float) -> str:
    return f"{labels:.1%} of labels change, logits by {logits:.1g} of their spread"
