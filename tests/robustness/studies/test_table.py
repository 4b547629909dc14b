"""The table of a study, and what a classifier that gives one answer would reach."""

from __future__ import annotations

import pytest
import torch

from bilevel.robustness import ImageSet
from bilevel.robustness.studies.table import one_answer, print_one_answer

# 19 of 100 images are of the smaller class: the standard error is √(0.81 · 0.19 / 100) = 0.039.
IMAGES = ImageSet(
    torch.zeros(100, 1, 2, 2).byte(), (torch.arange(100) >= 19).long(), ("mel", "nv[b]")
)
LINE = "always answering nv[b] is right for 0.810 of the test images, under any attack\n"


def test_one_answer_is_the_largest_class() -> None:
    assert one_answer(IMAGES) == ("nv[b]", 0.81)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(0.81, 0.81)], True),  # what it is itself
        ([(0.95, 0.9)], False),
        ([(0.95, 0.84)], True),  # within the standard error
        ([(0.95, 0.86)], False),
        ([(0.95, 0.0), (0.95, 0.9)], False),  # without a defence, as is known
        ([(0.95, 0.0), (0.9, 0.6)], True),
        ([(0.84, 0.84), (0.95, 0.9)], True),  # the first has learned nothing
    ],
)
def test_it_is_told_where_a_classifier_is_no_better(
    capsys: pytest.CaptureFixture[str], rows: list[tuple[float, float]], told: bool
) -> None:
    print_one_answer(IMAGES, [{"clean": clean, "pgm100": pgm} for clean, pgm in rows])
    assert capsys.readouterr().out == LINE * told


def test_of_a_single_class_any_classifier_is_no_better(capsys: pytest.CaptureFixture[str]) -> None:
    print_one_answer(IMAGES.subset(IMAGES.labels == 1), [{"clean": 1.0, "pgm100": 1.0}])
    assert "is right for 1.000 of" in capsys.readouterr().out
