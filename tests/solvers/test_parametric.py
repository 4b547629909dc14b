"""`Parametric`: the solver whose parameters are the answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bilevel import (
    Adjoint,
    BilevelError,
    Detached,
    FollowerProblem,
    Iterative,
    Parametric,
    Solver,
    Unrolled,
    ZeroSum,
)
from bilevel.tree import leaves
from bilevel.updates import Gradient
from tests.problems import image_game


def test_parametric_answers_with_its_parameters_projected() -> None:
    leader, follower, batch = image_game(0.1)
    solver = Parametric(torch.full_like(batch.x, 5.0))
    value = solver.solve(follower, leader, batch).value
    assert value is solver.y
    assert solver.solve(follower, leader, batch, evaluate=False).stats == {}
    torch.testing.assert_close(value.detach(), (batch.x + 0.1).clamp(0, 1) - batch.x)
    other = Parametric(torch.full_like(batch.x, 5.0))
    other.project(follower, batch)
    assert torch.equal(other.y, value)


def test_parametric_names_a_networks_parameters() -> None:
    class Shared(FollowerProblem):
        sense = "max"

        def init(self, batch):
            return {name: p.detach() for name, p in nn.Linear(2, 1).named_parameters()}

        def objective(self, leader, y, batch):
            return -torch.func.functional_call(nn.Linear(2, 1), y, (batch,)).square().mean()

    follower = Shared()
    solver = Parametric(nn.Linear(2, 1))
    value = solver.solve(follower, ZeroSum(nn.Identity(), follower), torch.randn(4, 2)).value
    assert set(value) == {"weight", "bias"}
    assert value["weight"] is solver.y.weight


def test_the_answer_may_have_the_names_of_a_networks_weights() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1)))
    weights = {name: p.detach() for name, p in network.named_parameters()}
    solver = Parametric(weights)
    assert dict(solver.y.named_parameters()).keys() == weights.keys()
    x = torch.randn(4, 2)
    given = torch.func.functional_call(network, dict(solver.y.named_parameters()), (x,))
    assert torch.equal(given, network(x))
    twin = Parametric({name: torch.zeros_like(leaf) for name, leaf in weights.items()})
    twin.load_state_dict(solver.state_dict())
    assert all(map(torch.equal, twin.parameters(), solver.parameters()))


@pytest.mark.parametrize("names", [None, ["b", "a"], ["c", "0.b", "0.a"], ["values", "keys"]])
def test_the_start_that_was_given_stays(names) -> None:
    start = torch.zeros(2) if names is None else {name: torch.zeros(2) for name in names}
    solver = Parametric(start)
    assert names is None or [name for name, _ in solver.y.named_parameters()] == names
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += 1
    assert not any(leaf.any() for leaf in leaves(start))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([1.0, 2.0], "y is a list"),
        (0.5, "y is a float"),
        ({}, r"y is a dict of \[\]"),
        ({"a": {"b": torch.zeros(1)}}, r"y is a dict of \['a'\]"),
        ({"a": torch.zeros(1), "b": 0.0}, r"y is a dict of \['a', 'b'\]"),
        (nn.Linear(1, 1).parameters(), "y is a generator"),
        (torch.zeros(3, dtype=torch.int64), r"y has numbers of type torch\.int64"),
        (nn.BatchNorm1d(3).state_dict(), r"numbers of type torch\.int64.*the network itself"),
        ({"parameters": torch.zeros(1)}, "y has the name 'parameters', which no parameter of a"),
        ({"a": torch.zeros(1), "a.b": torch.zeros(1)}, "y has the name 'a.b', which no parameter"),
    ],
    ids=[
        "list",
        "float",
        "empty",
        "nested",
        "half",
        "generator",
        "int64",
        "state_dict",
        "method",
        "prefix",
    ],
)
def test_a_start_that_no_optimizer_could_move(start, message) -> None:
    with pytest.raises(BilevelError, match=message):
        Parametric(start)


class Particular:
    def check(self, follower: FollowerProblem) -> None:
        raise BilevelError(f"not made for {type(follower).__name__}")


class Point(Particular, Parametric):
    pass


class Steps(Particular, Iterative):
    pass


@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        (Point(torch.zeros(1)), Detached()),
        (Steps(Gradient(0.1), 1), Detached()),
        (Steps(Gradient(0.1), 1), Unrolled()),
    ],
)
def test_a_solver_refuses_a_problem_under_any_adjoint(solver: Solver, adjoint: Adjoint) -> None:
    leader, follower, batch = image_game(0.1)
    with pytest.raises(BilevelError, match="not made for"):
        adjoint.solve(solver, follower, leader, batch)
