"""The tables of the paper (Jiang et al., AISTATS 2021) as data.

Accuracies are in per cent. Rows are those of ``reproduce.py``, attacks those of ``robust_eval.py``.
"""

from __future__ import annotations

from typing import NamedTuple

STARTS = 5
"""Runs of other seeds, of which the paper reports the worst (Sec. 4); here random starts."""

POINTS = 100_000
"""Points per image of the random attack (Sec. 4)."""


class Cell(NamedTuple):
    """One accuracy of a table.

    Attributes:
        row: The row whose classifier is attacked.
        attack: The name of the attack, or its first word.
        clean: The paper's clean accuracy; None where the table has none.
        robust: The paper's accuracy under the attack.
    """

    row: str
    attack: str
    clean: float | None
    robust: float | None


TABLE_2 = {
    "cifar10": (
        Cell("plain", "PGM-20", 95.22, 0.00),
        Cell("pgm", "PGM-20", 87.30, 47.04),
        Cell("naive-l2l", "PGM-20", 94.53, 0.01),
        Cell("grad-only-l2l", "PGM-20", 86.28, 49.94),
        Cell("two-step-grad-only-l2l", "PGM-20", 85.8, 53.85),
        Cell("grad-l2l", "PGM-20", 85.84, 51.17),
        Cell("two-step-l2l", "PGM-20", 85.35, 54.32),
        Cell("grad-l2l", "PGM-100", 85.84, 47.72),
        Cell("two-step-l2l", "PGM-100", 85.35, 52.12),
        Cell("grad-l2l", "CW", 85.84, 53.5),
        Cell("two-step-l2l", "CW", 85.35, 57.07),
        Cell("grad-l2l", "random", 85.84, 82.67),
        Cell("two-step-l2l", "random", 85.35, 83.10),
        Cell("grad-l2l", "own", 85.84, 49.68),
        Cell("two-step-l2l", "own", 85.35, 52.71),
    ),
    "cifar100": (
        Cell("plain", "PGM-20", 76.10, 0.13),
        Cell("pgm", "PGM-20", 62.68, 23.75),
        Cell("grad-only-l2l", "PGM-20", 62.4, 27.64),
        Cell("two-step-grad-only-l2l", "PGM-20", 60.25, 31.24),
        Cell("grad-l2l", "PGM-20", 62.18, 28.67),
        Cell("two-step-l2l", "PGM-20", 60.95, 31.03),
        Cell("pgm", "PGM-100", 62.68, 22.06),
        Cell("grad-l2l", "PGM-100", 62.18, 26.69),
        Cell("two-step-l2l", "PGM-100", 60.95, 29.75),
        Cell("pgm", "CW", 62.68, 25.95),
        Cell("grad-l2l", "CW", 62.18, 29.65),
        Cell("two-step-l2l", "CW", 60.95, 32.28),
    ),
}
"""White-box accuracy. The plain rows are from the poster; the paper's first row, stability
training, is left out: its figure is from another work."""

TABLE_3 = {
    "cifar10": {
        "plain": 106.5,
        "pgm": 1310.8,
        "naive-l2l": 293.7,
        "grad-l2l": 617.5,
        "two-step-l2l": 805.1,
    },
    "cifar100": {
        "plain": 106.9,
        "pgm": 1354.8,
        "naive-l2l": 310.0,
        "grad-l2l": 623.1,
        "two-step-l2l": 824.7,
    },
}
"""Seconds per epoch."""

TABLE_4 = {
    "cifar10": (
        Cell("ait", "PGM-20", 90.43, 75.33),
        Cell("ait-grad-l2l", "PGM-20", 91.65, 80.87),
        Cell("ait", "PGM-100", 90.43, 67.84),
        Cell("ait-grad-l2l", "PGM-100", 91.65, 79.20),
        Cell("ait", "PGM-20 margin", 90.43, 64.79),
        Cell("ait-grad-l2l", "PGM-20 margin", 91.65, 74.88),
        Cell("ait", "PGM-100 margin", 90.43, 61.69),
        Cell("ait-grad-l2l", "PGM-100 margin", 91.65, 73.46),
    ),
}
"""Adversarial interpolation; the paper's CW-20 and CW-100 are PGM-20 and PGM-100 on the margin."""

TABLE_6 = {
    "cifar10": (
        Cell("slim-grad-l2l", "PGM-20", 85.31, 53.02),
        Cell("slim-two-step-l2l", "PGM-20", 75.36, 46.12),
        Cell("slim-grad-l2l", "CW", 85.31, 42.72),
        Cell("slim-two-step-l2l", "CW", 75.36, None),
    ),
    "cifar100": (
        Cell("slim-grad-l2l", "PGM-20", 60.60, 27.37),
        Cell("slim-two-step-l2l", "PGM-20", 60.23, 20.23),
        Cell("slim-grad-l2l", "CW", 60.60, 22.14),
        Cell("slim-two-step-l2l", "CW", 60.23, None),
    ),
}
"""The slim attacker; two entries (None) are illegible in our copy of the paper."""

TRANSFERS = tuple(
    f"{attack} on surrogate-{surrogate}"
    for surrogate in ("plain", "fgsm", "pgm")
    for attack in ("FGSM", "PGM-10")
)
"""The columns of the black-box tables."""

TABLE_7_8 = {
    "cifar10": {
        "plain": (40.03, 5.60, 74.42, 75.25, 67.37, 65.92),
        "fgsm": (79.20, 85.02, 89.90, 80.40, 64.28, 63.89),
        "pgm": (83.80, 84.73, 84.33, 85.29, 67.05, 65.54),
        "naive-l2l": (45.52, 25.95, 83.99, 77.94, 68.14, 67.13),
        "slim-grad-l2l": (86.10, 86.87, 87.93, 88.01, 71.15, 69.95),
        "slim-two-step-l2l": (85.83, 87.10, 86.51, 87.60, 70.58, 69.38),
    },
    "cifar100": {
        "plain": (21.04, 9.04, 50.57, 54.06, 40.06, 41.30),
        "fgsm": (42.87, 50.73, 61.68, 44.70, 39.34, 40.08),
        "pgm": (56.63, 58.34, 56.99, 57.97, 40.19, 39.87),
        "naive-l2l": (20.97, 10.47, 50.36, 54.07, 38.63, 39.91),
        "slim-grad-l2l": (57.63, 59.62, 59.18, 61.26, 41.71, 41.15),
        "slim-two-step-l2l": (58.66, 59.31, 58.92, 59.46, 45.80, 45.31),
    },
}
"""Accuracy under transferred attacks; the paper's L2L rows are those of the slim attacker."""
