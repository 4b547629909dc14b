"""What a game says about its players' optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bilevel import (
    Bilevel,
    BilevelError,
    Parametric,
    ZeroSum,
    pgm,
)
from tests.problems import (
    Saddle,
    Scalar,
    image_game,
)


def test_no_player_climbs() -> None:
    """A follower is maximised all the same: its gradient is negated."""
    leader, follower, _ = image_game()
    leader.requires_grad_(False)
    solver = Parametric(torch.zeros(1))
    optimizer = torch.optim.SGD(solver.parameters(), lr=0.1, maximize=True)
    with pytest.raises(BilevelError, match=r"solver_opt has maximize=True: .* leave maximize out"):
        Bilevel(leader, follower, solver, leader_opt=None, solver_opt=optimizer)


def test_a_scheduler_is_no_optimizer() -> None:
    leader, follower, _ = image_game()
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(leader.parameters(), lr=0.1), 1)
    with pytest.raises(BilevelError, match=r"leader_opt is a scheduler .*, a StepLR: .* call sche"):
        Bilevel(leader, follower, pgm(0.1, 1), leader_opt=scheduler)


def test_a_scaler_of_losses_is_no_optimizer() -> None:
    leader, follower, _ = image_game()
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(BilevelError, match=r"leader_opt is a GradScaler: .* in bfloat16"):
        Bilevel(leader, follower, pgm(0.1, 1), leader_opt=scaler)


def test_an_optimizer_of_a_part_of_a_player() -> None:
    """Said of what has a gradient: what has none may be trained elsewhere."""
    leader, follower, batch = image_game()
    leader.aside = nn.Linear(2, 2)
    parameters = [*leader.model.parameters()]
    game = Bilevel(
        leader, follower, pgm(0.1, 1), leader_opt=torch.optim.SGD(parameters[1:], lr=0.1)
    )
    first = next(name for name, _ in leader.named_parameters())
    with pytest.warns(UserWarning, match=rf"leader_opt does not have the leader's {first}: grad"):
        game.step(batch)
    game.step(batch)  # said once


def test_an_optimizer_of_the_solver_that_needs_a_closure() -> None:
    saddle = Saddle()
    leader, solver = ZeroSum(Scalar(1.0), saddle), Parametric(torch.zeros(()).double())
    with pytest.raises(BilevelError, match=r"solver_opt is an? LBFGS, whose step needs a closure"):
        Bilevel(
            leader,
            saddle,
            solver,
            leader_opt=torch.optim.LBFGS(leader.parameters()),
            solver_opt=torch.optim.LBFGS(solver.parameters()),
        )


@pytest.mark.parametrize("before", [False, True])
def test_schedulers_of_learning_rates_on_both_optimizers(before: bool) -> None:
    """They put a function of theirs in the place of the optimizer's step."""
    saddle = Saddle()
    leader, solver = ZeroSum(Scalar(1.0), saddle), Parametric(torch.ones(()).double())
    theta, phi = (torch.optim.SGD(player.parameters(), lr=0.5) for player in (leader, solver))

    def schedulers() -> list[Any]:
        return [torch.optim.lr_scheduler.StepLR(one, 1, gamma=0.0) for one in (theta, phi)]

    made = schedulers() if before else []
    game = Bilevel(leader, saddle, solver, leader_opt=theta, solver_opt=phi)
    made = made or schedulers()
    game.step(None)
    moved = leader.model.x.item(), solver.y.item()
    assert moved != (1.0, 1.0)
    for scheduler in made:
        scheduler.step()
    game.step(None)  # at rates of 0
    assert (leader.model.x.item(), solver.y.item()) == moved


def test_no_part_of_a_player_climbs() -> None:
    """As multipliers would, in a group of their own."""
    leader, follower, _ = image_game()
    first, *others = leader.parameters()
    groups = [{"params": [first], "maximize": True}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(BilevelError, match=r"leader_opt has maximize=True: .* leave maximize out"):
        Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)


def test_an_optimizer_of_a_part_of_the_solver() -> None:
    saddle = Saddle()
    solver = Parametric(torch.zeros(()).double())
    optimizer = torch.optim.SGD(solver.parameters(), lr=0.1)
    optimizer.param_groups.clear()
    leader = ZeroSum(Scalar(1.0), saddle)
    theta = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, saddle, solver, leader_opt=theta, solver_opt=optimizer)
    with pytest.warns(UserWarning, match="solver_opt does not have the solver's y: gradients"):
        game.step(None)
