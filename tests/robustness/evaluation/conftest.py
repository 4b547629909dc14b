"""A small robust classifier of digits, which passes every check."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bilevel import ZeroSum, pgm
from bilevel.robustness import (
    RECIPES,
    ImageSet,
    Linf,
    Splits,
    load_images,
    make_game,
    small_cnn,
)
from tests.digits import train
from tests.robustness.evaluation.scripted import COUNT


@pytest.fixture(scope="session")
def digits() -> Splits:
    return load_images("digits", ".", seed=0)


@pytest.fixture(scope="session")
def robust_eps() -> float:
    """ε that :func:`robust_model` is trained for."""
    return 0.2


@pytest.fixture(scope="session")
def robust_model(digits: Splits, robust_eps: float) -> nn.Module:
    """Trained with PGM-5: 97 % clean, 62 % under PGM-20. Shared, so not to be changed."""
    recipe, follower = replace(RECIPES["digits"], epochs=10), Linf(robust_eps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn(channels=1, classes=10, width=16)
        game = make_game(ZeroSum(model, follower), follower, pgm(robust_eps / 2, 5), recipe)
        train(game, digits.train, recipe, epochs=recipe.epochs)
    return model.eval()


@pytest.fixture
def images() -> ImageSet:
    """Even grey from black to white; the last three are labelled wrongly."""
    grey = torch.linspace(0, 255, COUNT).round().byte()
    labels = (grey > 127).long()
    labels[-3:] = 0
    return ImageSet(grey.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), labels, ("a", "b"))
