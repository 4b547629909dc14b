"""Recipes: how fast the learning rate moves, and what the fast form changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bilevel.robustness import RECIPES, Attacker, Recipe, build_model, fast, fitting_width


def test_one_cycle_is_two_lines() -> None:
    recipe = Recipe(epochs=20, one_cycle=True, lr=0.5)
    rates = torch.tensor([recipe.lr_at(epoch / 10) for epoch in range(201)], dtype=torch.float64)
    assert (rates.argmax(), rates.max()) == (60, 0.5)
    assert (rates[0], rates[-1]) == (0.5 / 25, 0)
    for line in (rates[:61], rates[60:]):
        assert line.diff().std() < 1e-12


def test_milestones_hold_for_whole_epochs() -> None:
    recipe = Recipe(epochs=7, milestones=(0.5, 0.8))
    assert [recipe.lr_at(epoch + 0.99) for epoch in range(7)] == [*map(recipe.lr_at, range(7))]


@pytest.mark.parametrize("dataset", RECIPES)
def test_the_fast_form(dataset: str) -> None:
    recipe = RECIPES[dataset]
    quick = fast(recipe)
    assert 15 <= quick.epochs <= 30
    assert quick.epochs <= recipe.epochs / 2
    steps = range(100 * quick.epochs)
    assert sum(quick.lr_at(step / 100) for step in steps) / len(steps) == pytest.approx(
        recipe.lr, rel=0.05
    )
    assert replace(quick, **{name: getattr(recipe, name) for name in (
        "epochs", "one_cycle", "lr", "weight_decay", "ema", "attacker_width", "gradient_skip",
    )}) == recipe  # fmt: skip


@pytest.mark.parametrize(("model", "width"), [("resnet18", 8), ("wrn-34-10", 32), ("wrn-10-1", 4)])
def test_an_attacker_grows_with_its_classifier(model: str, width: int) -> None:
    with torch.device("meta"):
        classifier = build_model(model, channels=3, classes=10)
    assert fitting_width(Attacker("wide"), classifier, (3, 32, 32)) == width
