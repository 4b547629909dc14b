"""Hooks of optimizers and of parameters see the gradient that their step descends."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bilevel import Alternating, Bilevel, Extragradient, Parametric, Simultaneous, ZeroSum, pgm
from tests.problems import Saddle, Scalar, image_game


def vector(module: nn.Module) -> torch.Tensor:
    return parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize("every", [False, True], ids=["of the optimizer", "of every optimizer"])
def test_a_hook_sees_the_gradient_of_its_step(every: bool) -> None:
    leader, follower, batch = image_game()
    optimizer = torch.optim.SGD(leader.parameters(), lr=1.0)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(leader.parameters(), 1e-3)

    register = register_optimizer_step_pre_hook if every else optimizer.register_step_pre_hook
    hook = register(clip)
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)
    for _ in range(2):
        before = vector(leader)
        game.step(batch)
        assert (vector(leader) - before).norm().item() == pytest.approx(1e-3, rel=1e-2)
    hook.remove()


class Twice(torch.optim.SGD):
    """Evaluates twice at the same point."""

    def step(self, closure):
        with torch.enable_grad():
            closure()
        return super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adam, Twice])
def test_a_hook_that_does_nothing_changes_nothing(kind) -> None:
    results = []
    for hooked in (False, True):
        torch.manual_seed(0)
        leader, follower, batch = image_game()
        optimizer = kind(leader.parameters(), lr=0.1)
        if hooked:
            optimizer.register_step_pre_hook(lambda *_: None)
        game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)
        with torch.no_grad():
            results.append([game.step(batch)["loss"] for _ in range(3)] + [vector(leader)])
    for plain, other in zip(*results, strict=True):
        assert torch.equal(plain, other)


class Wrapped:
    """An optimizer around another, as those of training frameworks; its step takes no gradient."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    @torch.no_grad()
    def step(self, closure):
        return self.optimizer.step(closure)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


def test_a_hook_of_a_wrapped_optimizer_sees_the_gradient_of_its_step() -> None:
    leader, follower, batch = image_game()
    inner, seen = torch.optim.SGD(leader.parameters(), lr=0.1), []
    inner.register_step_pre_hook(lambda *_: seen.append(leader.model.layers[0].weight.grad))
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=Wrapped(inner))
    for _ in range(2):
        game.step(batch)
        assert seen[-1] is leader.model.layers[0].weight.grad is not None


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating(), Extragradient()], ids=repr)
def test_hooks_of_the_solver_see_what_its_optimizer_descends(schedule) -> None:
    moved = []
    for hooked in (False, True):
        follower = Saddle()
        leader = ZeroSum(Scalar(1.0), follower)
        solver = Parametric(torch.tensor(0.5, dtype=torch.float64))
        if hooked:  # y ascends: the gradient that is descended is negative
            solver.y.register_hook(lambda gradient: gradient.clamp(max=0))
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (leader, solver)]
        game = Bilevel(
            leader,
            follower,
            solver,
            leader_opt=optimizers[0],
            solver_opt=optimizers[1],
            schedule=schedule,
        )
        loss = game.step(None)["loss"]
        moved.append((loss.item(), leader.model.x.item(), solver.y.item()))
    assert moved[0] == moved[1]
    assert moved[0][2] > 0.5


def test_a_compiled_optimizer_evaluates_once_a_step() -> None:
    leader, follower, batch = image_game()
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
    game = Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)
    (norm,) = (part for part in leader.modules() if isinstance(part, nn.BatchNorm2d))
    for steps in (1, 2, 3):
        game.step(batch)
        assert norm.num_batches_tracked == steps
