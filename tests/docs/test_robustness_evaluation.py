"""docs/robustness_evaluation.md: its pieces of code do what the text says."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bilevel import pgm
from bilevel.robustness import Linf
from tests.recipes import run_piece

PAGE = Path(__file__).parents[2] / "docs" / "robustness_evaluation.md"


def test_a_randomised_classifier_is_attacked_in_the_mean() -> None:
    """The gradient of a mean of k passes has a kth of the noise."""
    mean = run_piece(PAGE, "class Mean(", {"torch": torch})["Mean"]
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    x = torch.rand(1, 1, 4, 4)
    spreads = [torch.stack([mean(model, k)(x) for _ in range(200)]).var(0).mean() for k in (1, 20)]
    assert spreads[1] < spreads[0] / 10


def test_a_target_of_ones_own() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(20, 1, 4, 4)
    y, t = model(x).argmax(1), torch.randint(3, (20,))
    given = {"model": model, "x": x, "y": y, "t": t, "eps": 0.5, "F": F, "Linf": Linf, "pgm": pgm}
    found = run_piece(PAGE, "from bilevel.robustness import Targeted, attack\n", given)[
        "adversarial"
    ]
    reached = (model(found).argmax(1) == t).float().mean()
    assert reached > (y == t).float().mean() + 0.3
