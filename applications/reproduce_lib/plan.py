"""The classifiers that the tables need, and the sizes of the three scales."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import adv_training
import ait

from reproduce_lib.paper import POINTS, STARTS, TABLE_2, TABLE_6


@dataclass(frozen=True)
class Row:
    """A classifier that the tables need.

    Args:
        app: The application that trains it.
        method: Its method there.
        settings: Further arguments.
        slim: Whether its attacker is the slim one.
        surrogate: Whether it is only a source of transferred attacks: another seed, not evaluated.
    """

    app: ModuleType
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    slim: bool = False
    surrogate: bool = False


ROWS = {
    "plain": Row(adv_training, "plain"),
    "fgsm": Row(adv_training, "fgsm"),
    "pgm": Row(adv_training, "pgm"),
    "naive-l2l": Row(adv_training, "naive-l2l"),
    "grad-only-l2l": Row(adv_training, "grad-only-l2l"),
    "two-step-grad-only-l2l": Row(adv_training, "two-step-grad-only-l2l"),
    "grad-l2l": Row(adv_training, "grad-l2l"),
    "two-step-l2l": Row(adv_training, "two-step-l2l"),
    "slim-grad-l2l": Row(adv_training, "grad-l2l", slim=True),
    "slim-two-step-l2l": Row(adv_training, "two-step-l2l", slim=True),
    "label-smoothing": Row(ait, "label-smoothing"),
    "ait": Row(ait, "ait"),
    "ait-printed-sign": Row(ait, "ait", {"sense": "max"}),
    "ait-grad-l2l": Row(ait, "grad-l2l"),
    "ait-two-step-l2l": Row(ait, "two-step-l2l"),
    "surrogate-plain": Row(adv_training, "plain", surrogate=True),
    "surrogate-fgsm": Row(adv_training, "fgsm", surrogate=True),
    "surrogate-pgm": Row(adv_training, "pgm", surrogate=True),
}


@dataclass(frozen=True)
class Scale:
    """The sizes of a scale.

    Args:
        dataset: The dataset.
        training: Arguments of the training applications.
        evaluation: Arguments of ``robust_eval.py``.
        slim_width: Width of the slim attacker, half the channels of its first layer.
        ait: Further arguments of ``ait.py``.
        step: Step size in Figures 7 and 8.
    """

    dataset: str
    training: dict[str, Any]
    evaluation: dict[str, Any]
    slim_width: int
    ait: dict[str, Any] = field(default_factory=dict)
    step: float = 1e-4


BATTERY = ("fgsm", "pgm-20", "own", "transfer", "pgm-100", "pgm-20-margin", "pgm-100-margin")
BATTERY += ("apgd-ce", "apgd-t", "longer", "random")
ALONE = ("pgm-20-margin", "pgm-100-margin", "random")
CW_ROWS = {
    cell.row
    for table in (TABLE_2, TABLE_6)
    for cells in table.values()
    for cell in cells
    if cell.attack == "CW"
}
"""The rows for which a table needs CW, which takes as long as the longest other attack."""

SCALES = {
    "smoke": Scale(
        "digits",
        training={"epochs": 10, "test_size": 100},
        evaluation={"test_size": 100, "curve_size": 50, "points": 100},
        slim_width=16,
        step=3e-2,
    ),
    "small": Scale(
        "cifar10",
        training={
            "model": "wrn-10-1",
            "attacker": "wide",
            "attacker_width": 3,
            "gradient_skip": 2.0,
            "epochs": 5,
            "milestones": (0.6, 0.8),
            "train_size": 12000,
            "validation_size": 500,
            "test_size": 256,
        },
        evaluation={"test_size": 200, "curve_size": 64, "points": 1000},
        slim_width=3,
    ),
    "paper": Scale(
        "cifar10",
        training={},
        ait={"epochs": 200, "milestones": (0.3, 0.45)},
        evaluation={"test_size": None, "curve_size": 1000, "points": POINTS, "restarts": STARTS},
        slim_width=64,
    ),
}
