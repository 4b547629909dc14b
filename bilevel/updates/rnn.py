"""Recurrent updates, with a hidden state from step to step.

The hidden state is the update's ``state``, ``(y, state) -> (y', state')``, so that a solver can
start anew for each batch or continue. The cells do not use cuDNN's recurrent layers, which have no
second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bilevel.arguments import count, positive
from bilevel.errors import BilevelError
from bilevel.tree import Value, ravel
from bilevel.updates.base import State
from bilevel.updates.learned import Direction, ImageUpdate, Inputs, VectorUpdate
from bilevel.updates.normalize import Over, max_abs

ROWS = 8192
"""Coordinates that a processor computes at a time, so that what lies between stays in its cache."""


class ConvRNN(ImageUpdate):
    """A recurrent attacker: ``y' = y + scale · tanh(last(h'))``, ``h' = cell([context, ∇], h)``.

    The cell is a convolutional :class:`GRU <ConvGRUCell>`. Unlike
    ``Iterative(CNN(...), steps=K)``, the paper's multi-step attacker, it passes features on from
    step to step. It has no batch normalisation: the update of a sample never depends on the rest of
    the batch.

    The state is h, ``(B, hidden, H, W)``.

    Args:
        channels: C of the images ``(B, C, H, W)``.
        scale: The largest change of a coordinate in a step, in units of y.
        hidden: Channels of the hidden state h.
        inputs: The cell's inputs, as in :class:`~bilevel.updates.CNN`.
        normalize: As in :class:`~bilevel.updates.CNN`.
        gradient_skip: As in :class:`~bilevel.updates.CNN`.
        direction: As in :class:`~bilevel.updates.CNN`.

    Raises:
        BilevelError: If an argument is out of range; in the call, if y, the gradient or the
            context is missing, complex or does not have ``channels`` channels, or the state has
            another shape.

    Example:
        >>> attacker = ConvRNN(channels=1, scale=0.1, gradient_skip=1.0)
        >>> x, gradient = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
        >>> delta, state = attacker(torch.zeros_like(x), gradient, x, None)
        >>> delta, state = attacker(delta, gradient, x + delta, state)
        >>> state.shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        scale: float,
        *,
        hidden: int = 32,
        inputs: Inputs = ("context", "gradient"),
        normalize: Over = "sample",
        gradient_skip: float | None = None,
        direction: Direction = "sign",
    ) -> None:
        super().__init__(channels, scale, inputs, normalize, gradient_skip, direction)
        self.hidden = count("hidden", hidden)
        self.cell = ConvGRUCell(channels * len(inputs), hidden)
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)
        self._zero_if_skip(self.last)

    def propose(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """The last layer's output for the new hidden state, which is the next state."""
        batch, _, height, width = features.shape
        h = self.cell(features, _hidden_state(state, features, (batch, self.hidden, height, width)))
        return self.last(h), h


class ConvGRUCell(nn.Module):
    """The formulas of :class:`torch.nn.GRUCell` with 3×3 convolutions as its matrices.

    Args:
        inputs: Channels of the input.
        hidden: Channels of the hidden state.

    Example:
        >>> cell = ConvGRUCell(3, 8)
        >>> cell(torch.randn(2, 3, 5, 5), torch.zeros(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(inputs, 3 * hidden, 3, padding=1)
        self.memory = nn.Conv2d(hidden, 3 * hidden, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` and ``(B, hidden, H, W)`` to the new ``(B, hidden, H, W)``."""
        reset_x, update_x, new_x = self.input(x).chunk(3, dim=1)
        reset_h, update_h, new_h = self.memory(h).chunk(3, dim=1)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return new + torch.sigmoid(update_x + update_h) * (h - new)


class CoordinateRNN(VectorUpdate):
    """A small GRU for each coordinate: ``y' = y + scale · last(h') + η · ∇``, ``h' = cell(∇, h)``.

    The coordinates share the cell and each has its own hidden state, so that it works for a y of
    any size: Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
    NeurIPS 2016, with a GRU in place of two LSTMs. The inputs for a coordinate are the logarithm
    and the sign of its gradient, as in their appendix A, after division by the largest gradient of
    its sample (see :func:`~bilevel.updates.max_abs`): like Adam's, the cell's step does not depend
    on the scale of the objective. A y shared by the batch must be a dict: the rows of a tensor are
    samples.

    The state is h, ``(m, hidden)`` for the m elements of y.

    Args:
        scale: The factor of the cell's output, in units of y.
        hidden: Size of a coordinate's hidden state, 20 as in Andrychowicz et al.
        gradient_skip: The initial η, in units of y² per unit of the objective; None for no skip.
            With it the last layer is initialised to zero: untrained, the update is gradient ascent.

    Raises:
        BilevelError: If an argument is out of range; in the call, if the gradient is missing or the
            state is that of a y of another size.

    Example:
        >>> update = CoordinateRNN(scale=0.01, gradient_skip=0.5)
        >>> y = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
        >>> gradient = {"weight": torch.tensor([[2.0, 4.0]]), "bias": torch.tensor([6.0])}
        >>> y, state = update(y, gradient, None, None)
        >>> {name: leaf.detach() for name, leaf in y.items()}
        {'weight': tensor([[1., 2.]]), 'bias': tensor([3.])}
        >>> state.shape
        torch.Size([3, 20])
    """

    def __init__(
        self, scale: float, *, hidden: int = 20, gradient_skip: float | None = None
    ) -> None:
        super().__init__(gradient_skip)
        self.scale = positive("scale", scale)
        self.cell = nn.GRUCell(2, count("hidden", hidden))
        self.last = nn.Linear(hidden, 1)
        self._zero_if_skip(self.last)

    def _settings(self) -> dict[str, object]:
        return {"scale": self.scale}

    def propose(self, y: Value, gradient: Value, state: State) -> tuple[Tensor, State]:
        """The last layer's output for the new hidden states, which are the next state."""
        features = _log_sign(ravel(max_abs(gradient)))
        h = _hidden_state(state, features, (len(features), self.cell.hidden_size))
        h = self._next(features, h)
        return self.scale * self.last(h).squeeze(-1), h

    def _next(self, features: Tensor, h: Tensor) -> Tensor:
        """The cell's new hidden states: the rows are independent of each other."""
        if features.device.type != "cpu" or len(features) <= ROWS:
            return self.cell(features, h)
        parts = zip(features.split(ROWS), h.split(ROWS), strict=True)
        return torch.cat([self.cell(*part) for part in parts])


def _log_sign(gradient: Tensor) -> Tensor:
    """``(log|g| / p, sign g)`` where ``|g| ≥ exp(-p)``, else ``(-1, exp(p) · g)``, with p = 10."""
    # Clamps, because torch.where would have the derivative NaN at g = 0.
    power = 10
    floor = math.exp(-power)
    magnitude = gradient.abs().clamp(min=floor).log() / power
    return torch.stack([magnitude, (gradient / floor).clamp(-1, 1)], dim=-1)


def _hidden_state(state: State, features: Tensor, shape: Sequence[int]) -> Tensor:
    """The hidden state of the previous step, at the first step zeros."""
    h: Tensor = features.new_zeros(shape) if state is None else state
    if tuple(h.shape) != tuple(shape):
        raise BilevelError(
            f"the state has shape {tuple(h.shape)}: y needs {tuple(shape)}; "
            "give state=None to start with another y"
        )
    return h
