"""Games with an adjoint: how both players move, and runs that resume."""

from __future__ import annotations

import io

import pytest
import torch

from bilevel import (
    Adjoint,
    Alternating,
    Bilevel,
    Detached,
    FollowerProblem,
    HypergradientWarning,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Schedule,
    Simultaneous,
    Solver,
    Unrolled,
    ZeroSum,
)
from bilevel.updates import CNN, Gradient, Optimizer, Update
from tests.problems import image_game
from tests.valleys import F64, Decay, Shrunk


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating(5)], ids=repr)
def test_a_follower_trained_beside_its_leader(schedule: Schedule) -> None:
    leader, batch = Decay(), torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    solver = Parametric(batch / 2)
    game = Bilevel(
        leader,
        Shrunk(),
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.2),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.3),
        adjoint=Implicit(tolerance=1e-10),
        schedule=schedule,
    )
    game.adjoint.warn_once = lambda *_: None  # the follower lags behind, by design
    for _ in range(150):
        game.step(batch)
    assert leader.theta.exp().item() == pytest.approx(2, rel=1e-4)
    torch.testing.assert_close(solver.y.detach(), batch / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adjoint", [Detached(), Unrolled(), Implicit(max_steps=1)], ids=repr)
def test_both_players_move_along_their_own_gradients(adjoint: Adjoint) -> None:
    """Not zero-sum, with a learned follower: θ's gradient has no part of φ's, nor φ's of θ's."""

    class Other(ZeroSum):
        def loss(self, y, batch):
            return (self.model(batch.x + y) ** 2).mean()

    leader, follower, batch = image_game(dtype=F64)
    leader = Other(leader.model.eval(), follower).eval()
    solver = Iterative(CNN(1, 0.1, width=4, form="two-layer").double(), 1)
    adjoint.warn_once = lambda *_: None
    solution = adjoint.solve(solver, follower, leader, batch)
    theta, phi = list(leader.parameters()), list(solver.parameters())
    expected = [
        *torch.autograd.grad(leader.loss(solution.value, batch), theta, retain_graph=True),
        *torch.autograd.grad(
            -follower.gain(leader, solution.value, batch).mean(), phi, allow_unused=True
        ),
    ]
    before = [p.detach().clone() for p in (*theta, *phi)]
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(theta, lr=1.0),
        solver_opt=torch.optim.SGD(phi, lr=1.0),
        adjoint=adjoint,
    )
    game.zero_sum = False
    game.step(batch)
    for p, old, slope in zip((*theta, *phi), before, expected, strict=True):
        torch.testing.assert_close(old - p, torch.zeros_like(p) if slope is None else slope)


def test_a_run_resumed_equals_the_run_never_stopped() -> None:
    batches = [torch.randn(3, dtype=F64) for _ in range(6)]

    def fresh() -> Bilevel:
        leader = Decay()
        return Bilevel(
            leader,
            Shrunk(),
            Iterative(Optimizer(torch.optim.Adam, lr=0.1), 200, warm_start=True),
            leader_opt=torch.optim.Adam(leader.parameters(), lr=0.05),
            adjoint=Implicit(max_steps=2, tolerance=1e-12, warm_start=True),
        )

    straight, stopped, resumed = fresh(), fresh(), fresh()
    for game in (straight, stopped, resumed):
        game.adjoint.warn_once = lambda *_: None
    for batch in batches[:3]:
        straight.step(batch)
        stopped.step(batch)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches[3:]:
        a, b = straight.step(batch), resumed.step(batch)
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(straight.leader.theta, resumed.leader.theta)


def test_a_resumed_adjoint_knows_what_it_has_warned_of() -> None:
    """And counts the evaluations that it has no reason to take again."""

    def fresh() -> Bilevel:
        leader = Decay()
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        solver = Iterative(Gradient(0.01), 2)
        return Bilevel(leader, Shrunk(), solver, leader_opt=optimizer, adjoint=Implicit())

    batch = torch.randn(3, dtype=F64)
    straight, resumed = fresh(), fresh()
    with pytest.warns(HypergradientWarning, match="not stationary"):
        straight.step(batch)
    resumed.load_state_dict(straight.state_dict())
    for _ in range(2):
        a, b = straight.step(batch), resumed.step(batch)
        assert all(torch.equal(a[name], b[name]) for name in a)


class Soft(Update):
    """A step of ISTA: down the slope, then toward zero by the leader's threshold."""

    def __init__(self, leader: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "leader", leader)  # a reference, no part

    def forward(self, y, gradient, context, state):
        moved = y + 0.5 * gradient
        return moved.sign() * (moved.abs() - 0.5 * self.leader.threshold).relu(), state


class Sparse(FollowerProblem):
    """min over y of ½‖y − x‖² + threshold·‖y‖₁, solved by soft thresholding."""

    sense = "min"

    def init(self, batch):
        return torch.zeros_like(batch)

    def objective(self, leader, y, batch):
        # The last term is zero; it makes the smooth part depend on θ.
        return (y - batch).square().sum() / 2 + 0 * (leader.threshold * y).sum()


class Thresholded(Solver):
    def answer(self, oracle):
        x = oracle.batch
        return x.sign() * (x.abs() - oracle.leader.threshold).relu()


def test_an_update_that_refers_to_the_leader_refers_to_the_games() -> None:
    """A game copies its adjoint, but not the leader that a fixed point of one's own reads."""

    class Threshold(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.threshold = torch.nn.Parameter(torch.tensor(0.5))

        def loss(self, y, batch):
            return y.square().sum() / 2

    leader = Threshold()
    adjoint = Implicit(fixed_point=Soft(leader))
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.0)
    game = Bilevel(leader, Sparse(), Thresholded(), leader_opt=optimizer, adjoint=adjoint)
    game.step(torch.tensor([2.0, -3.0, 0.1]))
    assert leader.threshold.grad.item() == pytest.approx(-4.0)  # −Σ|y|
