"""State dicts of learned updates carry the settings that no shape shows."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bilevel import BilevelError, Iterative
from bilevel.testing import check_update
from bilevel.updates import CNN, ConvRNN, CoordinateMLP, CoordinateRNN, Update
from bilevel.updates.learned import ImageUpdate

OTHERS = [
    (CoordinateRNN(0.1), lambda: CoordinateRNN(1.0), "scale=0.1"),
    (CoordinateMLP(), lambda: CoordinateMLP(scale=0.1), "scale=1"),
    (CoordinateMLP(scale=0.11), lambda: CoordinateMLP(scale=0.12), "scale=0.11"),
    (ConvRNN(1, 0.1, hidden=2), lambda: ConvRNN(1, 0.2, hidden=2), "scale=0.1"),
    (CNN(1, 0.1, width=2), lambda: CNN(1, 0.2, width=2), "scale=0.1"),
    (
        CNN(1, 0.1, width=2, inputs=("context",)),
        lambda: CNN(1, 0.1, width=2, inputs=("gradient",)),
        r"inputs=\('context',\)",
    ),
    (
        CNN(1, 0.1, width=2, normalize="batch"),
        lambda: CNN(1, 0.1, width=2),
        "normalize='batch'",
    ),
    (
        CNN(1, 0.1, width=2, gradient_skip=1.0, direction="max-abs"),
        lambda: CNN(1, 0.1, width=2, gradient_skip=1.0),
        "direction='max-abs'",
    ),
]


def saved(module: nn.Module) -> dict[str, torch.Tensor]:
    """Its state dict from a file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("update", "build", "setting"), OTHERS, ids=[one[2] for one in OTHERS])
def test_weights_of_another_setting(
    update: Update, build: Callable[[], Update], setting: str
) -> None:
    other = build()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(BilevelError, match=rf"saved {type(update).__name__} has .*with {setting}"):
        other.load_state_dict(saved(update))
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_weights_of_the_same_settings() -> None:
    """Also if a number is of another type, the update is a part of a solver, or one was copied."""
    first, second = (Iterative(CoordinateRNN(scale), 2) for scale in (np.float64(1), 1))
    for other in (second, copy.deepcopy(second)):
        other.load_state_dict(saved(first))
        torch.testing.assert_close(other.state_dict(), first.state_dict(), rtol=0, atol=0)
    second.update.scale = 2.0
    with pytest.raises(BilevelError, match=r"has scale=2, this one 1:.* load dict\(state\)"):
        first.load_state_dict(saved(second))


@pytest.mark.parametrize(
    ("update", "other"),
    [
        (CNN(1, 0.1, width=2), CNN(1, float(torch.tensor(0.1)), width=2)),
        (CNN(1, 0.1, width=2), CNN(1, 0.1, width=2, direction="max-abs")),  # of no skip
        (
            CNN(1, 0.1, width=2, inputs=("context",)),
            CNN(1, 0.1, width=2, inputs=("context",), normalize="batch"),  # of no gradient
        ),
    ],
)
def test_settings_that_make_no_difference(update: Update, other: Update) -> None:
    other.load_state_dict(saved(update))


def test_weights_are_tuned_further_with_another_setting() -> None:
    update, other = CoordinateRNN(0.1), CoordinateRNN(0.2)
    other.load_state_dict(dict(saved(update)))
    torch.testing.assert_close(other.state_dict(), update.state_dict(), rtol=0, atol=0)


def test_tensors_alone_are_loaded() -> None:
    """A state dict of tensors only, such as a safetensors file, does not say the settings."""
    state = CoordinateRNN(0.1).state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    CoordinateRNN(1.0).load_state_dict(dict(state))


class Volumes(ImageUpdate):
    """A convolution over three axes."""

    axes = 5

    def __init__(self) -> None:
        super().__init__(2, 0.1, ("context", "gradient"), "sample", 1.0)
        self.convolution = nn.Conv3d(4, 2, 3, padding=1)
        self._zero_if_skip(self.convolution)

    def propose(self, features: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return self.convolution(features), state


def test_volumes_are_moved_by_a_subclass() -> None:
    y, slope = torch.zeros(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    check_update(Volumes(), y, slope, context=torch.rand_like(y))
    moved, _ = Volumes()(y, slope, y, None)
    torch.testing.assert_close(moved, 0.1 * torch.tanh(slope.sign()))
    for update in (CNN(2, 0.1, width=2), ConvRNN(2, 0.1, hidden=2)):
        with pytest.raises(BilevelError, match=r"reads 4 axes, .* subclass of ImageUpdate with"):
            update(y, slope, y, None)
