"""The figure of `applications/hyper_cleaning.py`: each number stands where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from bilevel.experiment.style import BAD, INK
from tests.applications.conftest import Part

WEIGHTS = (torch.randperm(30, generator=torch.Generator().manual_seed(0)) + 0.5) / 30


@pytest.fixture(scope="module")
def data(part: Part) -> Any:
    return part("data").load("digits", seed=0, train_size=30)


@pytest.fixture(scope="module")
def axes(part: Part, data: Any) -> list[Axes]:
    """The curves, the histogram and the images, one after the other."""
    curve = part("metrics").Roc(torch.tensor([0.0, 0.1, 1.0]), torch.tensor([0.0, 0.8, 1.0]))
    drawn: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part("figure"), "save_png", lambda _, figure: drawn.append(figure))
        part("figure").draw(Path("none"), {"implicit": curve}, "implicit", WEIGHTS, data)
    return [*drawn[0].axes]


def test_a_curve_shows_wrong_labels_found_over_correct_ones_flagged(axes: list[Axes]) -> None:
    curve, chance = axes[0].lines
    assert [*curve.get_xdata()] == pytest.approx([0, 0.1, 1])
    assert [*curve.get_ydata()] == pytest.approx([0, 0.8, 1])
    assert curve.get_label() == "implicit  0.850"
    assert [*chance.get_xdata()] == [*chance.get_ydata()] == [0, 1]


def test_the_weights_of_wrong_labels_are_counted_apart(axes: list[Axes], data: Any) -> None:
    kinds = {"18 correct labels": ~data.wrong, "12 wrong labels": data.wrong}
    for bars, (label, chosen) in zip(axes[1].containers, kinds.items(), strict=True):
        assert bars[0].get_label() == label
        counted = torch.tensor([bar.get_height() for bar in bars])
        assert torch.equal(counted, WEIGHTS[chosen].histc(30, 0, 1))


def test_the_samples_of_smallest_weight_are_shown_with_both_labels(
    axes: list[Axes], data: Any
) -> None:
    def label(labels: Tensor) -> str:
        return data.classes[labels[sample]]

    train = data.images.train
    for axis, sample in zip(axes[2:], WEIGHTS.argsort()[:15].tolist(), strict=True):
        assert axis.images[0].get_array().ravel().tolist() == train.x[sample].tolist()
        right = f" → {label(data.truth)}" if data.wrong[sample] else ""
        assert axis.get_title() == label(train.y) + right
        assert axis.title.get_color() == (INK if right else BAD)
