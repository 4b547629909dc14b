"""The learning rates of a run, group by group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bilevel import BilevelError
from bilevel.robustness import Trainer
from tests.robustness.training.runs import RECIPE


def test_the_classifiers_learning_rate_follows_the_recipe_and_the_attackers_stays(
    build: Callable[..., Trainer],
) -> None:
    rates = []

    def read(steps: int, metrics: dict[str, float]) -> None:
        if "epoch" not in metrics:
            optimizers = trainer.game.leader_opt, trainer.game.solver_opt
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])

    trainer = build(report=read)
    history = trainer.fit().history
    assert rates == [[pytest.approx(0.1), 1e-3], [pytest.approx(0.01), 1e-3]]
    assert [record["lr"] for record in history] == [rate for rate, _ in rates]


def test_groups_of_parameters_keep_the_ratio_of_their_learning_rates(
    build: Callable[..., Trainer],
) -> None:
    """Of a pretrained trunk and a new head, say; a second run begins with the same ones."""
    given = build(recipe=replace(RECIPE, lr=0.7))
    model = given.game.leader
    groups = [{"params": [p], "lr": 0.1 * 2**i} for i, p in enumerate(model.parameters())]
    given.game.leader_opt = torch.optim.SGD(groups)
    for _ in range(2):
        trainer = Trainer(given.game, given.data, RECIPE, seed=0, path=given.path)
        history = trainer.fit().history
        rates = [group["lr"] for group in given.game.leader_opt.param_groups]
        assert rates == [pytest.approx(0.01 * 2**i) for i in range(len(groups))]
        assert [record["lr"] for record in history] == [pytest.approx(0.1), pytest.approx(0.01)]


def test_an_optimizer_without_learning_rates(build: Callable[..., Trainer]) -> None:
    class Mine:
        step = state_dict = load_state_dict = None

    given = build()
    given.game.leader_opt = Mine()
    with pytest.raises(BilevelError, match=r"leader_opt is an? Mine: .* one of torch.optim"):
        Trainer(given.game, given.data, RECIPE, seed=0, path=given.path)
