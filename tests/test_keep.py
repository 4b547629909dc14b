"""Answers that a follower keeps from one step of a game to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import bilevel
from bilevel import Bilevel, Iterative, Parametric, Schedule, ZeroSum
from bilevel.updates import Gradient

SAMPLES = 5


class Numbered(NamedTuple):
    """Samples and their positions in the data."""

    x: Tensor
    index: Tensor


class Answers(nn.Module):
    """The answers, a part of the game's state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(SAMPLES))


class Attracted(bilevel.FollowerProblem):
    """min over y_i of ½ (y_i − w x_i)², from the last answer to sample i."""

    sense = "min"

    def __init__(self) -> None:
        self.answers = Answers()
        self.starts: list[Tensor] = []
        self.kept: list[Tensor] = []

    def init(self, batch: Numbered) -> Tensor:
        self.starts.append(self.answers.last[batch.index])
        return self.starts[-1]

    def objective(self, leader: Any, y: Tensor, batch: Numbered) -> Tensor:
        return (y - leader.model.weight.squeeze() * batch.x).square() / 2

    def keep(self, y: Tensor, batch: Numbered) -> None:
        assert not y.requires_grad
        assert not torch.is_grad_enabled()
        self.kept.append(y)
        self.answers.last[batch.index] = y


def build(schedule: Schedule | None = None, *, lr: float = 0.1, **options: Any) -> Bilevel:
    torch.manual_seed(0)
    follower = Attracted()
    leader = ZeroSum(nn.Linear(1, 1, bias=False), follower)
    optimizer = torch.optim.SGD(leader.parameters(), lr)
    solver = Iterative(Gradient(0.25), 2)
    return Bilevel(leader, follower, solver, leader_opt=optimizer, schedule=schedule, **options)


def batch(*index: int) -> Numbered:
    return Numbered(torch.linspace(1, 2, SAMPLES)[[*index]], torch.tensor(index))


def test_a_sample_goes_on_from_its_own_last_answer_in_whatever_batch_it_comes() -> None:
    """Under a leader that stays, n steps of a game with K each are one solve of n·K."""
    game = build(lr=0.0)
    for indices in ((0, 1, 2), (3, 1), (1, 4, 0)):
        game.step(batch(*indices))
    optimum = game.leader.model.weight.item() * torch.linspace(1, 2, SAMPLES)
    steps = 2 * torch.tensor([2, 3, 1, 1, 1])
    torch.testing.assert_close(game.follower.answers.last, (1 - 0.75**steps) * optimum)


@pytest.mark.parametrize(
    ("schedule", "solves"),
    [
        (bilevel.Simultaneous(), 1),
        (bilevel.Alternating(), 1),  # no φ
        (bilevel.Extragradient(), 2),
        (bilevel.ProximalPoint(4), 4),
        (bilevel.Optimistic(), 1),
    ],
)
def test_the_last_answer_of_a_step_is_kept_and_all_its_solves_start_at_one_point(
    schedule: Schedule, solves: int
) -> None:
    game = build(schedule)
    game.step(batch(0, 1))
    starts, kept = game.follower.starts, game.follower.kept
    assert len(kept) == 1
    game.step(batch(1, 0))
    assert len(kept) == 2
    last = starts[-solves:]
    assert len(last) == solves
    assert all(torch.equal(start, kept[0].flip(0)) for start in last)
    assert not torch.equal(kept[1], last[0])


@pytest.mark.parametrize("adjoint", [bilevel.Unrolled(recompute=True), bilevel.Forward()])
def test_a_backward_pass_that_solves_again_starts_where_the_solve_did(
    adjoint: bilevel.Adjoint,
) -> None:
    """Gradients are those of the same start, given as a constant."""
    game = build(adjoint=adjoint)
    game.step(batch(0, 1))
    start = game.follower.answers.last.clone()
    game.step(batch(0, 1))
    found = game.leader.model.weight.grad.clone()

    again = build(adjoint=adjoint)
    again.step(batch(0, 1))
    again.follower.init = lambda given: start[given.index]
    again.step(batch(0, 1))
    assert torch.equal(found, again.leader.model.weight.grad)
    assert found.abs() > 1e-3


def test_an_answer_that_is_a_parameter_is_kept_as_it_was() -> None:
    class Path(bilevel.FollowerProblem):
        sense = "max"

        def __init__(self) -> None:
            self.kept: list[Tensor] = []

        def init(self, batch: None) -> Tensor:
            return torch.zeros(())

        def objective(self, leader: Any, y: Tensor, batch: None) -> Tensor:
            return y * leader.model.weight.sum()

        def keep(self, y: Tensor, batch: None) -> None:
            self.kept.append(y)

    path, solver = Path(), Parametric(torch.zeros(()))
    leader = ZeroSum(nn.Linear(1, 1, bias=False), path)
    nn.init.ones_(leader.model.weight)
    game = Bilevel(
        leader,
        path,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.5),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=1.0),
    )
    for _ in range(3):
        game.step(None)
    assert [y.item() for y in path.kept] == [0.0, 1.0, 2.0]


def test_kept_answers_are_a_part_of_the_state() -> None:
    straight, resumed = build(), build()
    straight.step(batch(0, 1, 2))
    resumed.load_state_dict(straight.state_dict())
    for game in (straight, resumed):
        game.step(batch(1, 2, 3))
    assert torch.equal(straight.follower.answers.last, resumed.follower.answers.last)
    assert straight.leader.model.weight.equal(resumed.leader.model.weight)


def test_nothing_is_kept_by_solves_outside_of_a_step() -> None:
    game = build()
    game.solve(batch(0, 1))
    game.solver.solve(game.follower, game.leader, batch(2))
    assert not game.follower.kept


class Idle(Schedule):
    """A schedule of one's own that does not solve."""

    def step(self, game: Bilevel, batch: Any) -> dict[str, Tensor]:
        return {}


def test_a_step_without_a_solve_keeps_nothing() -> None:
    game = build()
    game.step(batch(0))
    game.schedule = Idle()
    game.step(batch(1))
    assert len(game.follower.kept) == 1
