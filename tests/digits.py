"""A classifier of digits and a learned attacker of it, trained in two seconds."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import NamedTuple

import torch

from bilevel import Bilevel, Solver, ZeroSum
from bilevel.robustness import (
    RECIPES,
    Attacker,
    ImageSet,
    Linf,
    Recipe,
    build_model,
    load_images,
    make_game,
    make_solver,
    shuffled_batches,
)
from bilevel.robustness.networks.classifier import Classifier

EPS = 0.2


class Players(NamedTuple):
    model: Classifier
    attacker: Solver
    test: ImageSet


def trained() -> Players:
    """Trained against each other by two-step L2L; a copy, which a test may change."""
    return copy.deepcopy(_trained())


@lru_cache(maxsize=1)
def _trained() -> Players:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = load_images("digits", ".", seed=0)
        model = build_model("small-cnn", channels=1, classes=10)
        network = Attacker("two-layer", width=16)
        attacker = make_solver("two-step-l2l", eps=EPS, channels=1, attacker=network)
        follower = Linf(EPS)
        game = make_game(ZeroSum(model, follower), follower, attacker, RECIPES["digits"])
        train(game, data.train, RECIPES["digits"], epochs=3)
    return Players(model.eval(), attacker.eval(), data.test)


def train(game: Bilevel, images: ImageSet, recipe: Recipe, *, epochs: int) -> None:
    """Plays for some epochs, the leader with the learning rate of each."""
    for epoch in range(epochs):
        for group in game.leader_opt.param_groups:
            group["lr"] = recipe.lr * recipe.lr_factor(epoch)
        for batch in shuffled_batches(images, 64, seed=0, epoch=epoch):
            game.step(batch)
