"""Adversarial training by two learned steps, small enough for a test."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bilevel import Bilevel, ZeroSum
from bilevel.alias import SCHEDULES
from bilevel.robustness import Attacker, Batch, Linf, Recipe, build_model, make_game, make_solver

BATCH = Batch(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6))


def make(schedule: str = "simultaneous", model: str = "wrn-10-1") -> Bilevel:
    """Two-step learning beside a network with all kinds of blocks."""
    torch.manual_seed(0)
    attacker = Attacker("two-layer", width=4, gradient_skip=0.5)
    solver = make_solver("two-step-l2l", eps=0.1, channels=1, attacker=attacker)
    follower = Linf(0.1)
    leader = ZeroSum(build_model(model, channels=1, classes=10), follower)
    recipe = Recipe(lr=0.01)
    return make_game(leader, follower, solver, recipe, schedule=SCHEDULES[schedule]())


def play(game: Bilevel, steps: int = 3) -> dict[str, Tensor]:
    """What the networks are after some steps."""
    for _ in range(steps):
        game.step(BATCH)
    states = game.leader.state_dict(), game.solver.state_dict()
    return {name: v for state in states for name, v in state.items() if isinstance(v, Tensor)}


close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-6)
