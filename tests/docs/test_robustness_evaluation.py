"""docs/robustness_evaluation.md: its pieces of code do what the text says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bilevel import pgm
from bilevel.robustness import Linf

PAGE = (Path(__file__).parents[2] / "docs" / "robustness_evaluation.md").read_text()


def run(start: str, names: dict[str, Any]) -> dict[str, Any]:
    """The page's piece of code that begins so."""
    (code,) = re.findall(rf"^```python\n({re.escape(start)}.*?)```", PAGE, re.M | re.S)
    exec(code, names)
    return names


def test_a_randomised_classifier_is_attacked_in_the_mean() -> None:
    """The gradient of a mean of k passes has a kth of the noise."""
    mean = run("class Mean(", {"torch": torch})["Mean"]
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    x = torch.rand(1, 1, 4, 4)
    spreads = [torch.stack([mean(model, k)(x) for _ in range(200)]).var(0).mean() for k in (1, 20)]
    assert spreads[1] < spreads[0] / 10


def test_a_target_of_ones_own() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(20, 1, 4, 4)
    y, t = model(x).argmax(1), torch.randint(3, (20,))
    given = {"model": model, "x": x, "y": y, "t": t, "eps": 0.5, "F": F, "Linf": Linf, "pgm": pgm}
    found = run("from bilevel.robustness import Targeted, attack\n", given)["adversarial"]
    reached = (model(found).argmax(1) == t).float().mean()
    assert reached > (y == t).float().mean() + 0.3
