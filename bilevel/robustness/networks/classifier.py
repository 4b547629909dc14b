"""The base of the kit's classifiers: images in [0, 1] are normalised inside, then classified."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError


class Normalize(nn.Module):
    """Maps images in [0, 1] to ``(x - mean) / std``, channel by channel.

    The statistics are buffers: they move with the model and are saved with its weights.

    Args:
        channels: Number of channels of the images.
        mean: A list of one number per channel, or with a single one for all, in units of the pixel
            range.
        std: Likewise; positive.

    Raises:
        BilevelError: If the statistics do not fit the channels or ``std`` is not positive.

    Example:
        >>> Normalize(1, mean=[0.5], std=[0.25])(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, channels: int, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise BilevelError(
                    f"{name} has {len(values)} numbers but the images have {channels} channels: "
                    "give one number a channel, or a single one"
                )
            statistic = torch.tensor(values, dtype=torch.get_default_dtype())
            self.register_buffer(name, statistic.expand(channels).reshape(-1, 1, 1).clone())
        if not all(value > 0 for value in std):
            raise BilevelError(
                f"std is {list(std)}: the images are divided by it, so each number must be "
                "positive; give 1 for a channel that is constant"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Normalises a batch of images.

        Args:
            x: Images in [0, 1], ``(B, channels, H, W)``, floating point.

        Returns:
            The normalised images, same shape.

        Raises:
            BilevelError: If ``x`` is not a batch of such images.
        """
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise BilevelError(
                f"the images have shape {tuple(x.shape)} but the model takes "
                f"(B, {len(self.mean)}, H, W): build it with the channels of the images"
            )
        if not x.is_floating_point():
            raise BilevelError(
                f"the images are {x.dtype} but the model takes [0, 1]: give images.float() / 255"
            )
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """``logits = head(features(x))`` for images x in [0, 1].

    A convolutional trunk maps the normalised images to feature maps; their mean over the pixels is
    the feature vector, which a linear head maps to logits. Convolutions are initialised as in He
    et al. 2015 (normal, fan-out), the head's bias with zero.

    Args:
        trunk: Normalised images ``(B, channels, H, W)`` to feature maps ``(B, width, h, w)``.
        width: Number of features.
        channels: Number of channels of the images.
        classes: Number of classes.

    Attributes:
        normalize: The :class:`Normalize` that comes first. :func:`build_model` assigns one with the
            given statistics.

    Example:
        >>> model = Classifier(nn.Conv2d(3, 7, 3), 7, channels=3, classes=10)
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, trunk: nn.Module, width: int, *, channels: int, classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(channels)
        self.trunk = trunk
        self.head = nn.Linear(width, classes)
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        """The feature vectors, the input of the head.

        Args:
            x: Images in [0, 1], ``(B, channels, H, W)``.

        Returns:
            One feature vector per image, ``(B, width)``.
        """
        maps: Tensor = self.trunk(self.normalize(x))
        return maps.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Classifies a batch of images.

        Args:
            x: Images in [0, 1], ``(B, channels, H, W)``.

        Returns:
            Logits, ``(B, classes)``.
        """
        return self.head(self.features(x))
