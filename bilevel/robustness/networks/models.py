"""Image classifiers for adversarial training: a small CNN, ResNet-18 and WideResNets.

Each is a :class:`~bilevel.robustness.networks.classifier.Classifier`: it takes images in [0, 1] of
any size and normalises them itself, so that ε is always in units of the pixel range.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from bilevel.errors import BilevelError, raise_unknown
from bilevel.robustness.networks.classifier import Classifier, Normalize
from bilevel.robustness.networks.trunk import Trunk


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, which batch normalisation makes redundant."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU())


class _BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut.append(_conv(inputs, outputs, kernel=1, stride=stride))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class _PreActivationBlock(nn.Module):
    """BN-ReLU-conv twice, plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = _conv(inputs, outputs, kernel=1, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # If the shape changes, the shortcut takes the activated input, as in the authors' code.
        return out + (x if self.shortcut is None else self.shortcut(active))


def _stages(block: type[nn.Module], blocks: int, widths: Sequence[int]) -> list[nn.Sequential]:
    """Groups of residual blocks with widths[1:] channels; each but the first halves the image."""
    stages = []
    for stage, (inputs, width) in enumerate(pairwise(widths)):
        first = block(inputs, width, 1 if stage == 0 else 2)
        stages.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(blocks - 1))))
    return stages


def small_cnn(channels: int, classes: int, *, width: int = 32) -> Classifier:
    """Three convolutions for small images: seconds to train on a CPU.

    It has batch normalisation although clean training does not need it: adversarial training of
    such a small network hardly progresses without, and the effects of attacks on BatchNorm's
    statistics can be studied on it.

    Args:
        channels: Number of channels of the images.
        classes: Number of classes.
        width: Channels of the first convolution; each further one halves the image and doubles the
            channels.

    Returns:
        The classifier, with ``4 * width`` features.

    Example:
        >>> small_cnn(channels=1, classes=10).features(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 128])
    """
    trunk = Trunk(
        _conv_bn_relu(channels, width),
        _conv_bn_relu(width, 2 * width, stride=2),
        _conv_bn_relu(2 * width, 4 * width, stride=2),
    )
    return Classifier(trunk, 4 * width, channels=channels, classes=classes)


def resnet18(channels: int, classes: int) -> Classifier:
    """ResNet-18 for small images: a 3×3 stem of stride 1 and no max-pooling.

    Source: He et al. 2016, "Deep Residual Learning", table 1.

    Args:
        channels: Number of channels of the images.
        classes: Number of classes.

    Returns:
        The classifier, with 512 features.

    Example:
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in resnet18(channels=3, classes=10).parameters())
        11173962
    """
    stages = _stages(_BasicBlock, 2, (64, 64, 128, 256, 512))
    trunk = Trunk(_conv_bn_relu(channels, 64), *stages)
    return Classifier(trunk, 512, channels=channels, classes=classes)


def wide_resnet(depth: int, widen: int, channels: int, classes: int) -> Classifier:
    """WRN-depth-widen: three groups of pre-activation blocks (BN-ReLU-conv), without dropout.

    Source: Zagoruyko & Komodakis 2016, "Wide Residual Networks", table 1.

    Args:
        depth: Number of layers, ``6 n + 4`` for n blocks a group.
        widen: Factor on the widths 16, 32, 64 of the groups.
        channels: Number of channels of the images.
        classes: Number of classes.

    Returns:
        The classifier, with ``64 * widen`` features.

    Raises:
        BilevelError: If there is no network of that depth and width.

    Example:
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in wide_resnet(34, 10, channels=3, classes=10).parameters())
        46160474
    """
    if depth < 10 or depth % 6 != 4 or widen < 1:
        raise BilevelError(
            f"there is no wrn-{depth}-{widen}: the depth is 6n+4 (10, 16, 22, 28, …), the width "
            f"1 or more; give wrn-{max(10, 6 * round((depth - 4) / 6) + 4)}-{max(1, widen)}"
        )
    width = 64 * widen
    stages = _stages(_PreActivationBlock, (depth - 4) // 6, (16, width // 4, width // 2, width))
    trunk = Trunk(_conv(channels, 16), *stages, nn.BatchNorm2d(width), nn.ReLU())
    return Classifier(trunk, width, channels=channels, classes=classes)


def build_model(
    name: str,
    *,
    channels: int,
    classes: int,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
) -> Classifier:
    """The classifier of that name, freshly initialised.

    Args:
        name: ``"small-cnn"``, ``"resnet18"`` or ``"wrn-D-K"``, such as ``"wrn-34-10"`` (usual in
            adversarial training) or ``"wrn-10-1"`` (small enough for a CPU).
        channels: Number of channels of the images.
        classes: Number of classes.
        mean: Per-channel mean of the images, see :class:`Normalize`.
        std: Per-channel scale of the images, see :class:`Normalize`.

    Returns:
        The classifier, from images in [0, 1] to logits.

    Raises:
        BilevelError: If no classifier has that name.

    Example:
        >>> build_model("wrn-10-1", channels=1, classes=10)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if wrn := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        model = wide_resnet(int(wrn[1]), int(wrn[2]), channels, classes)
    elif name in (builders := {"small-cnn": small_cnn, "resnet18": resnet18}):
        model = builders[name](channels, classes)
    else:
        raise_unknown("model", name, [*builders, "wrn-34-10", "wrn-28-10", "wrn-16-2", "wrn-10-1"])
    model.normalize = Normalize(channels, mean, std)
    return model
