"""What a classifier is asked before it is attacked: could an attack on it mean anything?

Each probe costs a few passes over a few images and answers with a finding. What attacks make of the
classifier is judged in :mod:`bilevel.robustness.evaluation.verdict`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel import BilevelError, NonFiniteError, frozen
from bilevel.robustness.batches import batches
from bilevel.robustness.classifier import Normalize
from bilevel.robustness.data import ImageSet, sample
from bilevel.robustness.evaluation.gradients import gradients_predict, has_gradients
from bilevel.robustness.evaluation.results import Finding

# Measured on digits and CIFAR-10: classifiers that take [0, 1] gain 2 points of accuracy at most in
# any other range (a weakly trained one likes more contrast). Those that want [0, 255], [-1, 1] or
# the statistics of CIFAR-10 or ImageNet gain 16 to 88. A robust one whose own range differs little
# from [0, 1] gains 1 to 5 and goes unnoticed: so little does it lose.
_GAIN = 0.1

# By how much of their spread logits may change. In a repeated pass not at all, but for kernels that
# add in any order. In another batch a little: its shape chooses the kernel, and TF32 has 3 digits.
_REPEATED = 1e-3
_REARRANGED = 1e-2


def probe(model: nn.Module, images: ImageSet, *, size: int = 256) -> tuple[Finding, ...]:
    """Asks everything.

    Args:
        model: The classifier; it computes in evaluation mode and is left as it was.
        images: Images on its device.
        size: How many of them are asked about.

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
    check_classifier(model, images)
    few = sample(images, size)
    probes = (
        gives_logits,
        takes_unit_interval,
        repeats_itself,
        ignores_the_batch,
        has_gradients,
        gradients_predict,
    )
    return tuple(ask(model, few) for ask in probes)


def check_classifier(model: nn.Module, images: ImageSet) -> None:
    """Checks that the classifier answers clean images with finite numbers, one a class.

    Args:
        model: The classifier.
        images: Images on its device.

    Raises:
        BilevelError: If its output is not ``(B, K)`` for the images' K classes.
        NonFiniteError: If a logit is NaN or infinite.
    """
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
    logits = _logits(model, images)
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise NonFiniteError(
            f"the classifier's logits are NaN or infinite on {bad} of {len(images)} clean images: "
            "these are neither right nor wrong; check its weights and its input layer, or go back "
            "to an earlier checkpoint"
        )


def gives_logits(model: nn.Module, images: ImageSet) -> Finding:
    """Whether the output could be anything but probabilities, which weaken the cross entropy.

    Args:
        model: The classifier.
        images: Images on its device.

    Returns:
        The finding.
    """
    output = _logits(model, images)
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


def takes_unit_interval(model: nn.Module, images: ImageSet) -> Finding:
    """Whether images in [0, 1] suit the classifier best.

    Args:
        model: The classifier.
        images: Images on its device.

    Returns:
        The finding; it names the range that suits it better.
    """
    here = _accuracy(model, images)
    others = {
        name: _accuracy(nn.Sequential(normalize.to(images.images.device), model), images)
        for name, normalize in _ranges(images).items()
    }
    best = max(others, key=lambda name: others[name])
    ok = others[best] - here <= _GAIN
    return Finding(
        "inputs are in [0, 1]",
        ok,
        f"{here:.1%} in [0, 1], {others[best]:.1%} {best}",
        "No other range of inputs suits the classifier much better."
        if ok
        else f"The classifier wants its images {best}. Put that inside of it, as "
        "nn.Sequential(Normalize(…), model), so that attacks see images in [0, 1].",
    )


def _ranges(images: ImageSet) -> dict[str, Normalize]:
    """What images in [0, 1] are often turned into before a classifier sees them."""
    channels = images.images.shape[1]
    pixels = images.images.float() / 255
    own = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).clamp(min=1 / 255).tolist()
    statistics: dict[str, tuple[list[float], list[float]]] = {
        "in [0, 255]": ([0.0], [1 / 255]),
        "in [-1, 1]": ([0.5], [0.5]),
        "normalised by ImageNet's mean and std": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "normalised by CIFAR-10's mean and std": ([0.491, 0.482, 0.447], [0.247, 0.243, 0.262]),
        "normalised by their own mean and std": own,
    }
    return {
        name: Normalize(channels, mean, std)
        for name, (mean, std) in statistics.items()
        if len(mean) in (1, channels)
    }


def repeats_itself(model: nn.Module, images: ImageSet) -> Finding:
    """Whether the same images get the same logits again.

    Args:
        model: The classifier.
        images: Images on its device.

    Returns:
        The finding.
    """
    labels, logits = _repetition(model, images)
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


def ignores_the_batch(model: nn.Module, images: ImageSet) -> Finding:
    """Whether an image's logits are the same beside other images and in another place.

    Args:
        model: The classifier.
        images: Images on its device.

    Returns:
        The finding.
    """
    backwards = torch.arange(len(images)).flip(0)
    # In pairs and not alone, because BatchNorm refuses to take statistics of a single value.
    pairs = _logits(model, images.subset(backwards), batch_size=2)[backwards]
    labels, logits = _change(_logits(model, images), pairs)
    # What a mere repetition changes is not the batch's doing.
    ok = logits <= max(_REARRANGED, 3 * _repetition(model, images)[1])
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


def _logits(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Tensor:
    with torch.no_grad(), frozen(model):
        return torch.cat([model(batch.x) for batch in batches(images, batch_size)])


def _accuracy(model: nn.Module, images: ImageSet) -> float:
    """Accuracy where infinite and undefined logits are wrong: ranges may well give such."""
    logits = _logits(model, images)
    right = (logits.argmax(1) == images.labels) & logits.isfinite().all(1)
    return right.double().mean().item()


def _change(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Share of labels that change, and the largest change of a logit over the logits' spread."""
    labels = (first.argmax(1) != second.argmax(1)).double().mean().item()
    spread = (first.amax(1) - first.amin(1)).median().clamp(min=torch.finfo(first.dtype).tiny)
    return labels, ((first - second).abs().max() / spread).item()


def _repetition(model: nn.Module, images: ImageSet) -> tuple[float, float]:
    """The largest :func:`_change` in three repeated passes."""
    first = _logits(model, images)
    labels, logits = zip(*(_change(first, _logits(model, images)) for _ in range(3)), strict=True)
    return max(labels), max(logits)


def _figure(labels: float, logits: float) -> str:
    return f"{labels:.1%} of labels change, logits by {logits:.1g} of their spread"
