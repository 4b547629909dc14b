"""A warm start: what is kept from one solve for the next."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW

from bilevel import (
    Bilevel,
    BilevelError,
    Detached,
    FollowerProblem,
    Iterative,
    NonFiniteError,
    Update,
    ZeroSum,
)
from bilevel.robustness import Batch
from bilevel.updates import Gradient, Momentum, Optimizer
from tests.problems import Nearest, Weights, image_game

Memory = namedtuple("Memory", "slope count")


class Remembers(Update):
    """An update whose state is a named tuple with a list in it."""

    def forward(self, y, gradient, context, state):
        state = Memory([gradient + y.sum()], torch.ones(())) if state is None else state
        return y + 0.1 * state.slope[0], Memory([state.slope[0] * 2], state.count + 1)


def test_any_tree_of_tensors_is_kept_without_its_history() -> None:
    leader, follower, batch = image_game()
    solver = Iterative(Remembers(), 2, warm_start=True)
    follower.init = lambda batch: torch.zeros_like(batch.x).requires_grad_()
    solver.solve(follower, leader, batch)
    solver.solve(follower, leader, batch)
    _, state = solver.kept
    assert isinstance(state, Memory)
    assert state.count.item() == 5
    assert not state.slope[0].requires_grad


def test_a_warm_start_lies_in_this_batchs_y() -> None:
    leader, follower, batch = image_game(eps=0.3)
    solver = Iterative(Gradient(100.0), 1, warm_start=True)
    solver.solve(follower, leader, batch)
    other = Batch(torch.ones_like(batch.x), batch.y)  # x + δ ≤ 1 leaves no room upwards
    solver.steps = 0
    answer = solver.solve(follower, leader, other).value
    torch.testing.assert_close(answer, follower.project(answer, other))
    assert answer.max() <= 0


def test_what_is_kept_is_converted_with_the_solver() -> None:
    leader, follower, batch = image_game()
    solver = Iterative(Remembers(), 2, warm_start=True)
    solver.solve(follower, leader, batch)
    game = leader.double(), follower, Batch(batch.x.double(), batch.y)
    solver.double()
    (leader, follower, batch), kept = game, solver.kept
    assert kept[0].dtype == kept[1].slope[0].dtype == torch.float64
    assert solver.solve(follower, leader, batch).value.dtype == torch.float64


KINDS = {
    "adam": Optimizer(Adam, lr=0.1),
    "adamax": Optimizer(Adamax, lr=0.1),
    "adagrad": Optimizer(Adagrad, lr=0.1),
    "momentum of torch": Optimizer(SGD, lr=0.1, momentum=0.5),
    "momentum": Momentum(Gradient(0.1), 0.5),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("other", [name for name in KINDS if name != "adam"])
def test_the_state_of_another_update_is_not_read(other: str, loaded: bool) -> None:
    leader, follower, batch = image_game()
    solver = first = Iterative(KINDS[other], 1, warm_start=True)
    first.solve(follower, leader, batch)
    if loaded:
        solver = Iterative(KINDS["adam"], 1, warm_start=True)
        solver.load_state_dict(first.state_dict())
    solver.update = KINDS["adam"]
    with pytest.raises(BilevelError, match=r"is that of .*, which Optimizer\(adam\) cannot read"):
        solver.solve(follower, leader, batch)
    solver.kept = (solver.kept[0], None)  # as the message says
    solver.solve(follower, leader, batch)
    assert solver.kept[1][0]["step"] == 1


def test_the_state_of_an_update_of_ones_own_is_not_read_by_one_of_another_class() -> None:
    class Another(Remembers):
        pass

    leader, follower, batch = image_game()
    solver = Iterative(Remembers(), 1, warm_start=True)
    solver.solve(follower, leader, batch)
    solver.update = Another()
    with pytest.raises(BilevelError, match="is that of Remembers, which Another cannot read"):
        solver.solve(follower, leader, batch)


def test_the_state_of_an_update_within_another_is_not_read_either() -> None:
    leader, follower, batch = image_game()
    solver = Iterative(Momentum(KINDS["adagrad"], 0.5), 1, warm_start=True)
    solver.solve(follower, leader, batch)
    solver.update = Momentum(KINDS["adam"], 0.5)
    with pytest.raises(BilevelError, match=r"is that of Momentum\(Optimizer\(adagrad\)\), which"):
        solver.solve(follower, leader, batch)


def test_updates_that_read_the_same_state_follow_each_other() -> None:
    leader, follower, batch = image_game()
    solver = Iterative(KINDS["adam"], 1, warm_start=True)
    solver.solve(follower, leader, batch)
    solver.update = Optimizer(AdamW, lr=0.1)
    solver.solve(follower, leader, batch)
    assert solver.kept[1][0]["step"] == 2


def test_what_is_kept_may_be_given_to_another_solver() -> None:
    leader, follower, batch = image_game()
    one, other = (Iterative(KINDS["adam"], 1, warm_start=True) for _ in range(2))
    one.solve(follower, leader, batch)
    other.kept = one.kept
    other.solve(follower, leader, batch)
    assert other.kept[1][0]["step"] == 2


def test_a_solve_begins_at_the_kept_answer() -> None:
    """Also where no gradient is taken there, with which the objective is known."""

    class Onward(Update):
        needs_gradient = False

        def forward(self, y, gradient, context, state):
            return y + 1, state

    class Bowl(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.zeros(())

        def objective(self, leader, y, batch):
            return y.square()

    follower, solver = Bowl(), Iterative(Onward(), 1, warm_start=True)
    leader = ZeroSum(torch.nn.Identity(), follower)
    stats = [solver.solve(follower, leader, None).stats for _ in range(3)]
    found = [(one["objective_before"].item(), one["objective_after"].item()) for one in stats]
    assert found == [(0, 1), (1, 4), (4, 9)]


def test_the_order_of_names_is_no_size() -> None:
    """An update may return the tensors of y in another order."""

    class Reversed(Update):
        def forward(self, y, gradient, context, state):
            return {name: y[name] + 1 for name in reversed(y)}, state

    class Pair(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return {"a": torch.zeros(1), "b": torch.zeros(2)}

        def objective(self, leader, y, batch):
            return y["a"].square().sum() + y["b"].square().sum()

    solver, pair = Iterative(Reversed(), 1, warm_start=True), Pair()
    for count in (1, 2):
        y = solver.solve(pair, ZeroSum(torch.nn.Identity(), pair), None).value
        assert [*y["a"], *y["b"]] == [count] * 3


def test_a_state_of_another_precision_is_converted_and_not_shared() -> None:
    leader, follower, batch = image_game()
    first, other = (Iterative(Remembers(), 2, warm_start=True) for _ in range(2))
    first.solve(follower, leader, batch)
    other.load_state_dict(first.state_dict())
    other.kept[0].zero_()
    assert first.kept[0].any()
    other.load_state_dict(first.state_dict())
    precise = Batch(batch.x.double(), batch.y)
    answer = other.solve(follower, leader.double(), precise).value
    assert answer.dtype == other.kept[1].slope[0].dtype == torch.float64


def test_no_step_goes_on_from_the_answer_to_a_batch_that_was_refused() -> None:
    leader, solver = Weights(3), Iterative(Momentum(Gradient(0.2), 0.5), 2, warm_start=True)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, Nearest(), solver, leader_opt=optimizer, adjoint=Detached())
    game.step(Batch(torch.ones(2, 3), None))
    kept = solver.kept
    with pytest.raises(NonFiniteError):
        game.step(Batch(torch.full((2, 3), torch.nan), None))
    assert solver.kept is kept
    game.step(Batch(torch.ones(2, 3), None))
