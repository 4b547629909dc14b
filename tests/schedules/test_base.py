"""Schedules: which gradients move which player, at which cost."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    Iterative,
    LeaderProblem,
    Parametric,
    Simultaneous,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.robustness import Batch, Linf
from bilevel.updates import CNN, CoordinateRNN, Gradient
from tests.problems import Nearest, Saddle, Scalar, Weights, image_game


def sgd_game(leader, follower, solver, lr: float, **parts) -> Bilevel:
    """Both players move by plain gradient steps."""
    return Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=lr),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=lr),
        **parts,
    )


def bilinear(x: float, y: float, step: float, schedule) -> Bilevel:
    follower = Saddle()
    leader = ZeroSum(Scalar(x), follower)
    solver = Parametric(torch.tensor(y, dtype=torch.float64))
    return sgd_game(leader, follower, solver, step, schedule=schedule)


def position(game: Bilevel) -> tuple[float, float]:
    return game.leader.model.x.item(), game.solver.y.item()


starts = st.floats(-2, 2).filter(lambda number: abs(number) > 1e-3)


@given(x=starts, y=starts, step=st.floats(1e-4, 0.9))
@settings(deadline=None, max_examples=30)
def test_simultaneous_play_of_the_bilinear_game_spirals_out_at_its_known_rate(x, y, step) -> None:
    """Appendix A: (x, y) ← (x − ηy, y + ηx), so the radius grows by √(1 + η²) a step."""
    game = bilinear(x, y, step, Simultaneous())
    for _ in range(5):
        game.step(None)
    radius = torch.tensor(position(game), dtype=torch.float64).norm()
    start = torch.tensor([x, y], dtype=torch.float64).norm()
    torch.testing.assert_close(radius / start, torch.tensor((1 + step**2) ** 2.5).double())


@given(x=starts, y=starts, step=st.floats(1e-3, 1.5))
@settings(deadline=None, max_examples=30)
@pytest.mark.parametrize(("first", "sign"), [("leader", -1), ("follower", 1)])
def test_alternating_play_of_the_bilinear_game_stays_on_its_ellipse(
    first, sign, x, y, step
) -> None:
    """With x first, x² + y² − ηxy is conserved; with y first, x² + y² + ηxy."""
    game = bilinear(x, y, step, Alternating(first=first))
    for _ in range(20):
        game.step(None)
    x1, y1 = position(game)
    before, after = (a * a + b * b + sign * step * a * b for a, b in ((x, y), (x1, y1)))
    assert after == pytest.approx(before, rel=1e-9, abs=1e-9)


def test_several_follower_steps_are_several_steps() -> None:
    game = bilinear(1.0, 0.0, 0.1, Alternating(follower_steps=3))
    game.step(None)
    assert position(game) == pytest.approx((1.0, 0.3))


def l2l_game(
    schedule, *, steps: int = 2, dtype=torch.float64, mode="eval"
) -> tuple[Bilevel, Batch]:
    """Adversarial training with a learned attacker whose optimizers take steps of length 1."""
    leader, follower, batch = image_game(dtype=dtype)
    solver = Iterative(CNN(1, 0.1, width=4, form="two-layer"), steps, leader_mode=mode).to(dtype)
    game = sgd_game(leader, follower, solver, 1.0, schedule=schedule)
    return game, batch


def moves(module: nn.Module, before: nn.Module) -> list[torch.Tensor]:
    return [
        (new - old).detach()
        for new, old in zip(module.parameters(), before.parameters(), strict=True)
    ]


def test_simultaneous_moves_both_networks_as_algorithm_3_does() -> None:
    """θ descends and φ ascends CE(f(x + δ), y), both from the same point, written by hand."""
    game, batch = l2l_game(Simultaneous())
    leader, solver = copy.deepcopy((game.leader, game.solver))
    game.step(batch)

    solution = solver.solve(leader.follower, leader, batch)
    logits = leader.model(batch.x + solution.value)
    loss = nn.functional.cross_entropy(logits, batch.y)
    thetas, phis = list(leader.parameters()), list(solver.parameters())
    slopes = torch.autograd.grad(loss, [*thetas, *phis])
    for move, slope in zip(moves(game.leader, leader), slopes[: len(thetas)], strict=True):
        torch.testing.assert_close(move, -slope)
    for move, slope in zip(moves(game.solver, solver), slopes[len(thetas) :], strict=True):
        torch.testing.assert_close(move, slope)
        assert slope.abs().max() > 0


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_alternating_moves_the_solver_against_the_moved_leader_in_its_mode(mode) -> None:
    game, batch = l2l_game(Alternating(), mode=mode)
    leader, solver = copy.deepcopy((game.leader, game.solver))
    game.step(batch)

    # θ moves on the answer of the attacker in evaluation mode.
    follower = leader.follower
    solver.eval()
    delta = solver.solve(follower, leader, batch).value.detach()
    thetas = list(leader.parameters())
    loss = nn.functional.cross_entropy(leader.model(batch.x + delta), batch.y)
    slopes = torch.autograd.grad(loss, thetas)
    for move, slope in zip(moves(game.leader, leader), slopes, strict=True):
        torch.testing.assert_close(move, -slope)

    # φ moves, in training mode, against the leader as it is now, in the solver's leader mode.
    solver.train()
    for parameter, new in zip(thetas, game.leader.parameters(), strict=True):
        parameter.data.copy_(new)
    leader.train(mode == "train")
    value = solver.solve(follower, leader, batch).value
    loss = nn.functional.cross_entropy(leader.model(batch.x + value), batch.y)
    slopes = torch.autograd.grad(loss, list(solver.parameters()))
    for move, slope in zip(moves(game.solver, solver), slopes, strict=True):
        torch.testing.assert_close(move, slope)


class Passes:
    """Counts the forward passes of a network, and the backward passes through its output."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = self.backward = 0
        module.register_forward_hook(self._forward)

    def _forward(self, module, inputs, output) -> None:
        self.forward += 1
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient) -> None:
        self.backward += 1


@pytest.mark.parametrize(
    ("steps", "schedule", "classifier", "attacker"),
    [
        (1, Simultaneous(), (2, 2), (1, 1)),  # one to take ∇, one at the solution
        (2, Simultaneous(), (3, 3), (2, 2)),
        (1, Alternating(), (4, 4), (2, 1)),  # everything twice
    ],
)
def test_passes_of_the_networks_in_a_step(steps, schedule, classifier, attacker) -> None:
    game, batch = l2l_game(schedule, steps=steps)
    counts = Passes(game.leader.model.layers), Passes(game.solver.update.network)
    game.step(batch)
    assert [(count.forward, count.backward) for count in counts] == [classifier, attacker]


def test_a_plain_step_costs_no_input_gradient() -> None:
    """3F: forward, and backward to the weights; the images need no gradient."""
    leader, follower, batch = image_game()
    game = Bilevel(
        leader,
        follower,
        pgm(0.1, 0),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
    )
    with FlopCounterMode(display=False) as counted:
        game.step(batch)
    with FlopCounterMode(display=False) as by_hand:
        nn.functional.cross_entropy(leader.model(batch.x), batch.y).backward()
    assert counted.get_total_flops() == by_hand.get_total_flops()


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_norm_learns_once_a_step_from_the_leaders_own_pass(schedule, mode) -> None:
    game, batch = l2l_game(schedule, mode=mode)
    norm = game.leader.model.layers[1]
    game.step(batch)
    assert norm.num_batches_tracked == 1
    assert game.leader.model.calls == 1


class Bigger(LeaderProblem):
    """Not zero-sum with :class:`Nearest`: an update that scales x, and a leader that weighs."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 3, dtype=torch.float64))

    def loss(self, y, batch):
        return (self.w * y).mean()


class Scale(Gradient):
    """A learned step size."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.size = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, y, gradient, context, state):
        return y + self.size * gradient, state


@pytest.mark.parametrize(("adjoint", "factor"), [(Detached(), 1), (Unrolled(), 2)])
@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()])
def test_a_game_that_is_not_zero_sum_moves_each_player_on_its_own_objective(
    schedule, adjoint, factor
) -> None:
    leader, solver = Bigger(), Iterative(Scale(), 1)
    batch = Batch(torch.randn(4, 3, dtype=torch.float64), torch.zeros(4))
    game = sgd_game(leader, Nearest(), solver, 1.0, adjoint=adjoint, schedule=schedule)
    w, x = leader.w.detach().clone(), batch.x
    game.step(batch)
    # One step from 0 gives y = size · w∘x; the leader sees y as a constant, or not.
    torch.testing.assert_close(leader.w.detach(), w - factor * (0.1 * w * x).mean(0) / 3)
    # The follower's mean loss is (size − 1)² ‖w∘x‖² / 2, at the weights that it was shown.
    shown = w if isinstance(schedule, Simultaneous) else leader.w.detach()
    slope = (0.1 - 1) * (shown * x).square().sum(1).mean()
    torch.testing.assert_close(solver.update.size.detach(), 0.1 - slope)


def test_a_leader_that_evaluates_several_times_in_a_step() -> None:
    """``torch.optim.LBFGS`` loops around the closure; φ gets the gradient of its first call."""
    game, batch = l2l_game(Simultaneous())
    once = copy.deepcopy(game)
    once.step(batch)
    game.leader_opt = torch.optim.LBFGS(game.leader.parameters(), max_iter=4)
    first = game.step(batch)["loss"]
    for ours, theirs in zip(game.solver.parameters(), once.solver.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert game.step(batch)["loss"] < first


def test_settings_out_of_range() -> None:
    with pytest.raises(BilevelError, match=r"follower_steps is 0.*give 1, 2"):
        Alternating(follower_steps=0)
    with pytest.raises(BilevelError, match="first is 'solver'"):
        Alternating(first="solver")


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()], ids=repr)
@pytest.mark.parametrize("cause", ["detached", "no step"])
def test_a_solver_that_no_gradient_reaches_does_not_stay_in_silence(schedule, cause) -> None:
    class Detaching(CNN):
        def forward(self, y, gradient, context, state):
            moved, state = super().forward(y, gradient, context, state)
            return moved.detach(), state

    update = (Detaching if cause == "detached" else CNN)(1, 0.1, form="two-layer", width=4)
    follower = Linf(0.1)
    leader = ZeroSum(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), follower)
    solver = Iterative(update, 0 if cause == "no step" else 1)
    game = sgd_game(leader, follower, solver, 0.1, schedule=schedule)
    batch = Batch(torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.long))
    told = "follower's objective does not depend on the parameters"
    with pytest.raises(BilevelError, match=told):
        game.step(batch)


def test_a_learned_follower_that_goes_on_moves_once_a_step() -> None:
    follower, leader = Nearest(), Weights(3)
    solver = Iterative(CoordinateRNN(0.1), 1, warm_start=True)
    with pytest.raises(BilevelError, match=r"solves 4 times a step.*take Simultaneous\(\)"):
        sgd_game(leader, follower, solver, 0.1, adjoint=Detached(), schedule=Alternating(3))


def test_a_game_that_is_not_zero_sum_is_simultaneous_too() -> None:
    """The leader moves on the answer as it was, though its solver has moved in place by then."""

    class Own(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.model = Scalar(1.0)

        def loss(self, y, batch):
            return self.model.x * y

    leader, solver = Own(), Parametric(torch.tensor(0.5, dtype=torch.float64))
    game = sgd_game(leader, Saddle(), solver, 0.1, adjoint=Detached())
    twin = bilinear(1.0, 0.5, 0.1, Simultaneous())
    for _ in range(5):
        game.step(None)
        twin.step(None)
        assert position(game) == position(twin)
