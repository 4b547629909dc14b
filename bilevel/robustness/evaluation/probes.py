"""Checks of a classifier before it is attacked: properties without which attacks mean little.

Each probe takes a few passes over a few images and returns a finding. The results of the attacks
are judged in :mod:`bilevel.robustness.evaluation.verdict`.
"""

from __future__ import annotations

import torch
from torch import nn

from bilevel import NonFiniteError
from bilevel.robustness.data.images import ImageSet, image_set
from bilevel.robustness.data.splits import sample
from bilevel.robustness.evaluation.continuity import is_continuous
from bilevel.robustness.evaluation.gradients import gradients_predict, has_gradients
from bilevel.robustness.evaluation.logits import logits_of
from bilevel.robustness.evaluation.probed import Probed, change
from bilevel.robustness.evaluation.ranges import expects_unit_interval
from bilevel.robustness.evaluation.results import Finding, finding
from bilevel.robustness.evaluation.tolerance import exceeds, share

# How much logits may change, relative to their spread: in a repeated pass only by kernels that sum
# in any order, in another batch also by another choice of kernels, of 3 digits in TF32.
_REPEAT_TOLERANCE = 1e-3
_BATCH_TOLERANCE = 1e-2


def probe(
    model: nn.Module, images: ImageSet, *, size: int = 256, batch_size: int = 256
) -> tuple[Finding, ...]:
    """Runs all probes.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: Images on its device.
        size: Number of images to sample from them.
        batch_size: Images a batch.

    Returns:
        The findings.

    Raises:
        BilevelError: If it cannot be evaluated, see :func:`check_classifier`.

    Example:
        >>> pixels, labels = torch.tensor([0, 255]).repeat(8), torch.arange(2).repeat(8)
        >>> images = ImageSet(pixels.byte().view(16, 1, 1, 1), labels, "ab")
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[-2.0], [2.0]]))
        >>> _ = model[1].bias.data.copy_(torch.tensor([1.0, -1.0]))
        >>> [finding.item for finding in probe(model, images) if not finding.ok]
        []
    """
    check_classifier(model, images, batch_size=batch_size)
    probed = Probed(model, sample(images, size), batch_size)
    probes = (
        beats_one_answer,
        outputs_logits,
        expects_unit_interval,
        is_deterministic,
        is_batch_independent,
        is_continuous,
        has_gradients,
        gradients_predict,
    )
    return tuple(run(probed) for run in probes)


def check_classifier(model: nn.Module, images: ImageSet, *, batch_size: int = 256) -> None:
    """Checks that the classifier's output on clean images is finite and has one logit per class.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Raises:
        BilevelError: If there are no images, a label is none of their K classes, the classifier is
            for images of other channels, size or precision, or the output is not ``(B, K)``.
        NonFiniteError: If a logit is NaN or infinite.
        OutOfMemoryError: If memory ends.
    """
    image_set("images", images).check()
    logits = logits_of(model, images, batch_size=batch_size)
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise NonFiniteError(
            f"the classifier's logits are NaN or infinite on {bad} of {len(images)} clean images: "
            "these have no prediction; check its weights and its input layer, or go back to an "
            "earlier checkpoint"
        )


def beats_one_answer(probed: Probed) -> Finding:
    """Whether the classifier is right more often than one that always answers the largest class."""
    labels = probed.images.labels
    right, largest = probed.logits.argmax(1) == labels, labels == labels.mode().values
    ok = exceeds(right, largest)
    return finding(
        "better than one answer to all images",
        ok,
        f"{share(right):.1%} right, by one answer {share(largest):.1%}",
        "The classifier has learned to tell the images apart.",
        "Always answering the largest class is right as often, as far as so many images tell, and "
        "no attack can break that: robustness means nothing here. Train the classifier, or "
        "evaluate on more images, or others.",
    )


def outputs_logits(probed: Probed) -> Finding:
    """Whether the output is not a probability distribution, for which attacks are too weak."""
    output = probed.logits
    lowest, off = output.min().item(), (output.sum(1) - 1).abs().max().item()
    ok = lowest < 0 or off > 0.01  # bfloat16 probabilities sum to 1 to two digits
    return finding(
        "output is logits",
        ok,
        f"min {lowest:.2g}, sum off 1 by {off:.2g}",
        "The output is no probability distribution.",
        "The classifier returns probabilities, whose cross entropy is nearly flat: attacks "
        "are weaker than they should be. Return the input of the softmax.",
    )


def is_deterministic(probed: Probed) -> Finding:
    """Whether repeated passes give the same logits."""
    labels, logits = probed.change_on_repeat
    ok = logits <= _REPEAT_TOLERANCE
    return finding(
        "output is deterministic",
        ok,
        _figure(labels, logits),
        "Repeated passes give the same output.",
        "Repeated passes give different outputs: gradients are random as well, and an image "
        "that withstands an attack once may not do so twice. Remove the randomness, or attack the "
        "mean over many passes (expectation over transformation).",
    )


def is_batch_independent(probed: Probed) -> Finding:
    """Whether an image's logits do not depend on the other images of its batch."""
    images = probed.images
    reverse = torch.arange(len(images)).flip(0)
    # In pairs rather than alone, since BatchNorm raises on the statistics of a single value; of an
    # odd number one group has three.
    pairs = reverse.tensor_split(max(1, len(images) // 2))
    paired = torch.cat([logits_of(probed.model, images.subset(pair)) for pair in pairs])
    labels, logits = change(probed.logits, paired[reverse])
    # A change that repetition alone explains does not count.
    ok = logits <= max(_BATCH_TOLERANCE, 3 * probed.change_on_repeat[1])
    return finding(
        "output is independent of the batch",
        ok,
        _figure(labels, logits),
        "The output for an image does not depend on the rest of its batch.",
        "The output for an image depends on the rest of its batch, and so does accuracy. Look "
        "for BatchNorm or preprocessing that uses the batch's statistics.",
    )


def _figure(labels: float, logits: float) -> str:
    return f"{labels:.1%} of labels change, logits by {logits:.1g} of their spread"
