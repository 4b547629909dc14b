"""Base classes of learned updates.

A learned update adds its network's output to y. Subclasses of these two define the network only:

    ImageUpdate    y' = y + scale · tanh(network + s · d(∇))       y is a batch of images
    VectorUpdate   y' = y + network + η · ∇                        y is a vector

Their state dicts carry the settings that the shapes of the weights do not show, such as the scale,
and are refused by an update with others.

The skip connection from the gradient is optional, and its factor (s, η) is learned. With it the
network's last layer is initialised to zero, so that training starts from the hand-designed step; a
random network would have to learn the gradient's direction first.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from bilevel.arguments import count, one_of, positive
from bilevel.errors import BilevelError
from bilevel.tree import Value, ravel, tree_map, unravel
from bilevel.updates.base import State, Update, given
from bilevel.updates.normalize import OVER, Over, max_abs

Inputs = tuple[Literal["context", "gradient"], ...]
"""The inputs of an attacker's network."""

Direction = Literal["sign", "max-abs"]
"""The skip's d(∇): sign ∇, which climbs most steeply in L∞, or ∇ / max|∇|, which does in L2."""

# The paper's Naive, Grad-only and Grad L2L.
INPUTS: tuple[Inputs, ...] = (("context",), ("gradient",), ("context", "gradient"))


class LearnedUpdate(Update):
    """An update with a network and, optionally, a skip connection from the gradient.

    Args:
        gradient_skip: The initial factor of the skip, or None for no skip.

    Raises:
        BilevelError: If ``gradient_skip`` is not finite.
    """

    gradient_skip: nn.Parameter | None

    def __init__(self, gradient_skip: float | None) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_save_settings)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_check_settings)  # type: ignore[no-untyped-call]
        if gradient_skip is None:
            self.gradient_skip = None
        elif math.isfinite(gradient_skip):
            self.gradient_skip = nn.Parameter(torch.tensor(float(gradient_skip)))
        else:
            raise BilevelError(
                f"gradient_skip is {gradient_skip}: nothing can be learned from there; "
                "give a finite number, or None for no skip"
            )

    def _settings(self) -> dict[str, object]:
        """The arguments that change what the weights mean, but no shape."""
        return {}

    def _zero_if_skip(self, last: nn.Conv1d | nn.Conv2d | nn.Linear) -> None:
        """Initialises the network's ``last`` layer to zero if there is a skip."""
        if self.gradient_skip is not None:
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)


class ImageUpdate(LearnedUpdate):
    """Updates images: ``y' = y + scale · tanh(network([context, ∇ / max|∇|]) + s · d(∇))``.

    A subclass implements :meth:`propose`.

    Args:
        channels: C of the images ``(B, C, H, W)``.
        scale: The largest change of a coordinate, in units of y.
        inputs: The network's inputs: the context, the gradient, or both.
        normalize: Whether the gradient is divided by the largest value of its sample or of the
            batch, see :func:`~bilevel.updates.max_abs`.
        gradient_skip: The initial s, or None for no skip.
        direction: The skip's d(∇): its ``"sign"``, or ``"max-abs"`` for ∇ / max|∇|, normalised
            like the network's input.

    Attributes:
        axes: The number of axes of y: 4, or 5 in a subclass for volumes or video, ``(B, C, D, H,
            W)``, and 3 in one for sequences, ``(B, C, T)``.

    Raises:
        BilevelError: If an argument is out of range.

    Example:
        >>> class Linear(ImageUpdate):
        ...     def __init__(self, channels, scale):
        ...         super().__init__(channels, scale, ("gradient",), "sample", None)
        ...         self.network = nn.Conv2d(channels, channels, kernel_size=1)
        ...     def propose(self, features, state):
        ...         return self.network(features), state
        >>> delta, _ = Linear(3, 0.1)(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), None, None)
        >>> delta.shape
        torch.Size([2, 3, 4, 4])
    """

    axes: ClassVar[int] = 4

    def __init__(
        self,
        channels: int,
        scale: float,
        inputs: Inputs,
        normalize: Over,
        gradient_skip: float | None,
        direction: Direction = "sign",
    ) -> None:
        super().__init__(gradient_skip)
        self.direction = one_of("direction", direction, get_args(Direction))
        self.channels = count("channels", channels)
        self.scale = positive("scale", scale)
        self.inputs = one_of("inputs", inputs, INPUTS)
        self.normalize = one_of("normalize", normalize, OVER)
        self.needs_gradient = "gradient" in inputs or gradient_skip is not None
        self.needs_context = "context" in inputs

    @abstractmethod
    def propose(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Applies the network.

        Args:
            features: The inputs, ``(B, channels · len(inputs), H, W)``.
            state: The state that the previous step returned; None at the first step.

        Returns:
            The output before tanh, ``(B, channels, H, W)``, and the state for the next step.
        """

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Changes each coordinate of the images ``y`` by at most ``scale``."""
        y = self._images("y", y)
        features = []
        if "context" in self.inputs:
            features.append(self._images("context", given("context", context), like=y))
        if "gradient" in self.inputs:
            normalized = max_abs(given("gradient", gradient), self.normalize)
            features.append(self._images("gradient", normalized, like=y))
        output, state = self.propose(torch.cat(features, dim=1), state)
        if self.gradient_skip is not None:
            output = output + self.gradient_skip * self._direction(given("gradient", gradient), y)
        # In y's precision: in bfloat16, 1 − tanh² is zero from 3 on, and φ's gradient would vanish.
        return y + self.scale * torch.tanh(output.to(y.dtype)), state

    def _settings(self) -> dict[str, object]:
        settings: dict[str, object] = {"scale": self.scale, "inputs": self.inputs}
        if self.needs_gradient:
            settings["normalize"] = self.normalize
        if self.gradient_skip is not None:
            settings["direction"] = self.direction
        return settings

    def _direction(self, gradient: Value, y: Tensor) -> Tensor:
        """d(∇)."""
        if self.direction == "sign":
            return torch.sign(self._images("gradient", gradient, like=y))
        return self._images("gradient", max_abs(gradient, self.normalize), like=y)

    def _images(self, name: str, value: Value, like: Tensor | None = None) -> Tensor:
        """Checks that ``value`` is a tensor ``(B, channels, H, W)`` of the shape of ``like``."""
        update = f"{type(self).__name__}(channels={self.channels})"
        if isinstance(value, dict):
            raise BilevelError(f"{name} is a dict: {update} moves images; use MLP or CoordinateRNN")
        if value.is_complex():
            raise BilevelError(f"{name} is complex: {update} reads real images; use CoordinateRNN")
        shape = tuple(value.shape)
        if value.dim() != self.axes:
            raise BilevelError(
                f"{name} has shape {shape}: {update} reads {self.axes} axes, samples and channels "
                "first; for volumes or sequences write a subclass of ImageUpdate with axes = 5 or "
                "3, or take CoordinateRNN"
            )
        if value.shape[1] != self.channels:
            raise BilevelError(
                f"{name} has shape {shape}: {update} reads {self.channels} channels of y, its "
                "gradient and its context; give the channels that y has, and where the context has "
                'others inputs=("gradient",)'
            )
        if like is not None and value.shape != like.shape:
            raise BilevelError(
                f"{name} has shape {shape}: y has {tuple(like.shape)}; give both the same shape"
            )
        return value


class VectorUpdate(LearnedUpdate):
    """Updates a tensor or a dict of tensors as one vector: ``y' = y + network + η · ∇``.

    A subclass implements :meth:`propose`.

    Args:
        gradient_skip: The initial η, or None for no skip.

    Raises:
        BilevelError: If ``gradient_skip`` is not finite.

    Example:
        >>> from bilevel.tree import ravel
        >>> class Shrink(VectorUpdate):
        ...     def propose(self, y, gradient, state):
        ...         return -ravel(y) / 2, state
        >>> y, _ = Shrink(None)(torch.ones(2, 1), torch.zeros(2, 1), None, None)
        >>> y.flatten()
        tensor([0.5000, 0.5000])
    """

    needs_context = False

    @abstractmethod
    def propose(self, y: Value, gradient: Value, state: State) -> tuple[Tensor, State]:
        """Applies the network.

        Args:
            y: The follower's variable, of m elements.
            gradient: Same shape as ``y``, its tensors in the order of ``y``.
            state: The state that the previous step returned; None at the first step.

        Returns:
            The change of each element, ``(m,)``, and the state for the next step.
        """

    def forward(
        self, y: Value, gradient: Value | None, context: Tensor | None, state: State
    ) -> tuple[Value, State]:
        """Adds the network's output and the skip to ``y``."""
        # In the order of y's names: the network identifies elements by their position.
        gradient = tree_map(lambda _, leaf: leaf, y, given("gradient", gradient))
        move, state = self.propose(y, gradient, state)
        if self.gradient_skip is not None:
            move = move + self.gradient_skip * ravel(gradient)
        return tree_map(torch.add, y, unravel(move, like=y)), state


def _written(update: LearnedUpdate) -> dict[str, str]:
    # As text, which torch.load reads with weights_only, whatever the values are.
    return {
        name: repr(value) if isinstance(value, (str, tuple)) else f"{value:.6g}"
        for name, value in update._settings().items()
    }


def _save_settings(update: LearnedUpdate, _: Any, prefix: str, metadata: Any) -> None:
    """Notes the settings where torch notes the version of a module, beside the tensors."""
    metadata["settings"] = _written(update)


def _check_settings(update: LearnedUpdate, _: Any, prefix: str, metadata: Any, *more: Any) -> None:
    """Checks that the weights were saved with these settings, if the state dict says so."""
    own, saved = _written(update), metadata.get("settings", {})
    for name in own.keys() & saved.keys():
        if own[name] != saved[name]:
            raise BilevelError(
                f"the saved {type(update).__name__} has {name}={saved[name]}, this one "
                f"{own[name]}: its weights would make other steps here; build it with "
                f"{name}={saved[name]}, or load dict(state), the tensors alone"
            )
