"""Whether a classifier takes images in [0, 1], or wants them in another range."""

from __future__ import annotations

from torch import Tensor, nn

from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.accuracy import logits_of
from bilevel.robustness.evaluation.results import Finding
from bilevel.robustness.evaluation.tolerance import breaks_more
from bilevel.robustness.networks.classifier import Normalize

# By what another range multiplies the odds of being right, right : wrong. Measured on digits:
# by 4 at most for networks that take [0, 1], also after one or two epochs of few images, when
# BatchNorm has not settled and likes more contrast (gains of 30 points); by 5 to 600 for networks
# that have learned something and want [0, 255] or [-1, 1]. Robust ones whose own range differs
# little from [0, 1] go unnoticed: so little do they lose.
_ODDS = 5


def takes_unit_interval(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Finding:
    """Whether images in [0, 1] suit the classifier best.

    Args:
        model: The classifier.
        images: Images on its device.
        batch_size: Images a batch.

    Returns:
        The finding; it names the range that suits it better.
    """
    here = _right(model, images, batch_size)
    others = {
        name: _right(nn.Sequential(normalize.to(images.images.device), model), images, batch_size)
        for name, normalize in _ranges(images).items()
    }
    best, there = max(others.items(), key=lambda other: int(other[1].sum()))
    ok = not breaks_more(there, here) or _odds(there) <= _ODDS * _odds(here)
    return Finding(
        "inputs are in [0, 1]",
        ok,
        f"{_percent(here)} in [0, 1], {_percent(there)} {best}",
        "No other range of inputs suits the classifier much better."
        if ok
        else f"The classifier wants its images {best}, or it has hardly been trained. Put that "
        "inside of it, as nn.Sequential(Normalize(…), model), so that attacks see images in "
        "[0, 1]; or train it to the end.",
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


def _right(model: nn.Module, images: ImageSet, batch_size: int) -> Tensor:
    """Infinite and undefined logits are wrong: ranges may well give such."""
    logits = logits_of(model, images, batch_size)
    return (logits.argmax(1) == images.labels) & logits.isfinite().all(1)


def _odds(right: Tensor) -> float:
    """Right : wrong, half an image on either side, so that none of them is no image."""
    hits = int(right.sum())
    return (hits + 0.5) / (len(right) - hits + 0.5)


def _percent(right: Tensor) -> str:
    return f"{right.double().mean().item():.1%}"
