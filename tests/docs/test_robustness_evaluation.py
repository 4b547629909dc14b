"""docs/robustness_evaluation.md: its pieces of code do what the text says."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bilevel import pgm
from bilevel.robustness import Linf, attack, batches, load_images, probe
from tests.recipes import run_piece

DETERMINISTIC = "output is deterministic"
PAGE = Path(__file__).parents[2] / "docs" / "robustness_evaluation.md"


def test_a_randomised_classifier_is_attacked_in_the_mean() -> None:
    """The gradient of a mean of k passes has a kth of the noise."""
    mean = run_piece(PAGE, "class Mean(", {"torch": torch})["Mean"]
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    x = torch.rand(1, 1, 4, 4)
    spreads = [
        torch.stack([mean(model.eval(), k).eval()(x) for _ in range(200)]).var(0).mean()
        for k in (1, 20)
    ]
    assert spreads[1] < spreads[0] / 10


def test_an_evaluation_keeps_the_dropout_of_the_mean(tmp_path: Path) -> None:
    images = load_images("digits", tmp_path, seed=0).test
    mean = run_piece(PAGE, "class Mean(", {"torch": torch})["Mean"]
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    found = {
        name: next(one for one in probe(module, images) if one.item == DETERMINISTIC).ok
        for name, module in {"alone": model, "mean": mean(model, 2)}.items()
    }
    assert found == {"alone": True, "mean": False}
    batch = next(batches(images, 60))
    given = mean(model, 2), Linf(0.1), pgm(0.1, 1), batch
    assert not torch.equal(attack(*given).x, attack(*given).x)


def test_a_target_of_ones_own() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(20, 1, 4, 4)
    y, t = model(x).argmax(1), torch.randint(3, (20,))
    given = {"model": model, "x": x, "y": y, "t": t, "eps": 0.5, "Linf": Linf, "pgm": pgm}
    found = run_piece(PAGE, "from bilevel.robustness import Targeted, ", given)["adversarial"]
    reached = (model(found).argmax(1) == t).float().mean()
    assert reached > (y == t).float().mean() + 0.3
