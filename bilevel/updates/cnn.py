"""The convolutional attackers of the paper: Table 1, Table 5 and variants.

The paper's Naive, Grad-only and Grad attackers are the three values of ``inputs``, and its K-step
attacker, an RNN whose cell is this network, is ``Iterative(CNN(...), steps=K)``.

In training mode, batch normalisation makes the update of a sample depend on the other samples of
the batch; in evaluation mode it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bilevel.arguments import count, one_of
from bilevel.recompute import checkpointed
from bilevel.updates.base import State
from bilevel.updates.learned import Direction, ImageUpdate, Inputs
from bilevel.updates.normalize import Over


class CNN(ImageUpdate):
    """A convolutional attacker: ``y' = y + scale · tanh(network([context, ∇ / max|∇|]))``.

    ======================  ==========================================================  ==========
    ``form``                network                                                     parameters
    ======================  ==========================================================  ==========
    ``"wide"``              Table 1, completed by the authors' code                     1,747,851
    ``"slim"``              Table 5 with its input concatenated before the last layer   1,434,359
    ``"slim-no-skip"``      Table 5 alone, which the paper finds unstable               1,434,197
    ``"two-layer"``         convolution, BN, ReLU, convolution                              5,315
    ======================  ==========================================================  ==========

    (Parameters with both inputs, three channels, width 64.) The slim forms work at half the
    resolution: cheaper and, in the paper, less robust. (Table 5 prints stride 1 where the authors'
    code has 2.) A forward pass of the wide form over a 32×32 image takes 1.79 G multiply-adds, 0.27
    of a WRN-34-10's but 3.2 times a ResNet-18's: choose ``width`` to suit the classifier.

    With ``gradient_skip=s`` it is ``y' = y + scale · tanh(network + s · sign ∇)`` with a learned s,
    and the last convolution is initialised to zero: untrained, it takes the sign-gradient step of
    size ``scale · tanh(s)``, close to FGSM. In an L2 ball sign ∇ is a poor direction: with
    ``direction="max-abs"`` the skip is ``s · ∇ / max|∇|``.

    Args:
        channels: C of the images ``(B, C, H, W)``, of any H and W.
        scale: The largest change of a coordinate, in units of y (ε of the threat model).
        form: The network, a name in the table.
        inputs: The network's inputs: ``("context",)`` is the paper's Naive attacker,
            ``("gradient",)`` Grad-only, ``("context", "gradient")`` Grad.
        width: Channels after the first convolution, of the slim forms half of them; the others are
            in proportion. 64 gives the paper's.
        normalize: ``"sample"`` divides each sample's gradient by its own largest value,
            ``"batch"`` by the batch's, as the authors' code does.
        gradient_skip: The initial s, or None for no skip.
        direction: What the skip adds: ``"sign"``, or ``"max-abs"`` for threat models in L2.

    Raises:
        BilevelError: If an argument is out of range; in the call, if y, the gradient or the
            context is missing, complex or does not have ``channels`` channels.

    Example:
        >>> attacker = CNN(channels=3, scale=8 / 255)
        >>> images, gradient = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
        >>> delta, _ = attacker(torch.zeros_like(images), gradient, images, None)
        >>> bool(delta.abs().max() <= 8 / 255)
        True
    """

    def __init__(
        self,
        channels: int,
        scale: float,
        *,
        form: str = "wide",
        inputs: Inputs = ("context", "gradient"),
        width: int = 64,
        normalize: Over = "sample",
        gradient_skip: float | None = None,
        direction: Direction = "sign",
    ) -> None:
        super().__init__(channels, scale, inputs, normalize, gradient_skip, direction)
        layers = FORMS[one_of("form", form, FORMS)]
        body, last = layers(channels * len(inputs), channels, count("width", width))
        self.network = nn.Sequential(body, last)
        self._zero_if_skip(last)

    def propose(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """The network's output, and the state unchanged."""
        return self.network(features), state


class ResBlock(nn.Module):
    """A pre-activation residual block with BN and PReLU (Fig. 9).

    The block of Miyato et al. (2018) with hidden channels = ``outputs``, batch normalisation
    without parameters, a 1×1 convolution as shortcut if the channels change, and Xavier-uniform
    weights of gain √2, in the shortcut 1.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.

    Example:
        >>> ResBlock(4, 8)(torch.randn(2, 4, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs, affine=False),
            nn.PReLU(),
            _conv(inputs, outputs, gain=math.sqrt(2)),
            nn.BatchNorm2d(outputs, affine=False),
            nn.PReLU(),
            _conv(outputs, outputs, gain=math.sqrt(2)),
        )
        self.shortcut = (
            nn.Identity() if inputs == outputs else _conv(inputs, outputs, gain=1, kernel=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        # Checkpointed: normalisation and activation are cheap to recompute, and would take two
        # thirds of the memory, which a solve of many steps keeps until its one backward pass.
        hidden = checkpointed(self.residual[:3], x)
        return checkpointed(self.residual[3:], hidden) + self.shortcut(x)


def _conv(inputs: int, outputs: int, gain: float, kernel: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight, gain)
    return conv


class _Bottleneck(nn.Module):
    """Layers that halve and double the resolution; ``skip`` concatenates their input."""

    def __init__(self, *layers: nn.Module, skip: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        out = self.layers(x)[..., :height, :width]  # an odd size is returned one larger
        return torch.cat([out, x], dim=1) if self.skip else out


class _GainConv2d(nn.Conv2d):
    """A 3×3 convolution without bias, times a learned scalar: ``s · z`` in ``tanh(s · z)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.gain = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


def _bn_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU())  # eps of the authors' code


def _stem(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, _bn_relu(outputs))


# (inputs, channels, width) -> (body, last convolution).
Form = Callable[[int, int, int], tuple[nn.Module, nn.Conv2d]]


def _wide(inputs: int, channels: int, width: int) -> tuple[nn.Module, nn.Conv2d]:
    body = nn.Sequential(
        _stem(inputs, width),
        ResBlock(width, 2 * width),
        ResBlock(2 * width, 4 * width),
        ResBlock(4 * width, 2 * width),
        ResBlock(2 * width, width),
        nn.BatchNorm2d(width, affine=False),
    )
    return body, nn.Conv2d(width, channels, 3, padding=1)


def _slim(inputs: int, channels: int, width: int, *, skip: bool) -> tuple[nn.Module, nn.Conv2d]:
    last = max(width // 4, 1)
    body = _Bottleneck(
        _stem(inputs, 2 * width, stride=2),
        ResBlock(2 * width, 4 * width),
        ResBlock(4 * width, 2 * width),
        nn.BatchNorm2d(2 * width, affine=False),
        nn.ConvTranspose2d(2 * width, last, 4, stride=2, padding=1, bias=False),
        _bn_relu(last),
        skip=skip,
    )
    return body, _GainConv2d(last + inputs if skip else last, channels)


def _two_layer(inputs: int, channels: int, width: int) -> tuple[nn.Module, nn.Conv2d]:
    return _stem(inputs, width), nn.Conv2d(width, channels, 3, padding=1)


FORMS: dict[str, Form] = {
    "wide": _wide,
    "slim": partial(_slim, skip=True),
    "slim-no-skip": partial(_slim, skip=False),
    "two-layer": _two_layer,
}
"""The values of ``form``."""
