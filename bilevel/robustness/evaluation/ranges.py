"""A probe of the range of inputs that a classifier expects: [0, 1] or another."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.logits import right_answers
from bilevel.robustness.evaluation.probed import Probed
from bilevel.robustness.evaluation.results import Finding, finding
from bilevel.robustness.evaluation.tolerance import exceeds, share
from bilevel.robustness.networks.classifier import Normalize

# The largest factor by which another range may multiply the odds, right : wrong. Measured on
# digits: at most 4 for networks trained on [0, 1], also after one or two epochs of few images, when
# BatchNorm's statistics lag and more contrast helps (by 30 points); 5 to 600 for networks that have
# learned something and expect [0, 255] or [-1, 1]. Robust networks whose range differs little from
# [0, 1] are not found, but lose little.
_MAX_ODDS_RATIO = 5


def expects_unit_interval(probed: Probed) -> Finding:
    """Whether the classifier is not much more accurate on another range than [0, 1]."""
    images, others = probed.images, {}
    unit = right_answers(probed.logits, images.labels)
    for name, normalize in _ranges(images).items():
        model = nn.Sequential(normalize.to(images.images.device), probed.model)
        others[name] = right_answers(replace(probed, model=model).logits, images.labels)
    name, other = max(others.items(), key=lambda item: int(item[1].sum()))
    ok = not exceeds(other, unit) or _odds(other) <= _MAX_ODDS_RATIO * _odds(unit)
    return finding(
        "inputs are in [0, 1]",
        ok,
        f"{share(unit):.1%} in [0, 1], {share(other):.1%} {name}",
        "On no other range of inputs is the classifier much more accurate.",
        f"The classifier expects its images {name}, or it has hardly been trained. Normalise "
        "inside the model, nn.Sequential(Normalize(…), model), so that attacks see images in "
        "[0, 1]; or train it to the end.",
    )


def _ranges(images: ImageSet) -> dict[str, Normalize]:
    """Common preprocessing of images in [0, 1]."""
    channels = images.images.shape[1]
    pixels = images.images / 255
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


def _odds(correct: Tensor) -> float:
    """Right : wrong, with half an image added to both so that neither is zero."""
    hits = int(correct.sum())
    return (hits + 0.5) / (len(correct) - hits + 0.5)
