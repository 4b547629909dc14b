"""What a game says about parts of the wrong kind, when it is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    Implicit,
    Iterative,
    Parametric,
    Sampled,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.updates import CoordinateRNN, Gradient, Momentum, Optimizer
from tests.problems import (
    LinearBox,
    Nearest,
    Saddle,
    Scalar,
    Weights,
    image_game,
    zero_sum_game,
)


class Shuffled(LinearBox):
    """Who writes the arguments of another library's loss."""

    def objective(self, delta, batch, leader):
        return super().objective(leader, delta, batch)


class Backwards(ZeroSum):
    def loss(self, batch, y):
        return super().loss(y, batch)


class OwnWords(LinearBox):
    """Names are free where they do not belong to another argument, and functions may lack them."""

    context = staticmethod(torch.add)

    def objective(self, model, delta, y):
        return super().objective(model, delta, y)


def play(**parts) -> None:
    leader, follower, batch = image_game()
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    parts = {
        "leader": leader,
        "follower": follower,
        "solver": pgm(0.1, 2),
        "leader_opt": optimizer,
        "adjoint": Detached(),
        **parts,
    }
    Bilevel(**parts).step(batch)


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("leader", nn.Linear(1, 1), "a Linear: it takes an object of type LeaderProblem"),
        (
            "follower",
            LinearBox,
            "the class LinearBox: it takes an object of type FollowerProblem",
        ),
        ("follower", pgm(0.1, 1), "an Iterative"),
        (
            "solver",
            Gradient(0.1),
            "a Gradient: it takes an object of type Solver; give Iterative",
        ),
        (
            "adjoint",
            Implicit,
            "the class Implicit: it takes an object of type Adjoint; give",
        ),
        ("schedule", Alternating, "the class Alternating: .*; give Alternating"),
        ("leader_opt", torch.optim.SGD, "the class SGD: it takes an object"),
        ("leader_opt", "sgd", "a str"),
    ],
)
def test_a_part_of_another_kind_is_named(name, part, message) -> None:
    with pytest.raises(BilevelError, match=f"{name} is {message}"):
        play(**{name: part})


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (
            {"follower": Shuffled()},
            r"Shuffled.objective takes delta, batch, leader: .* leader, y, b",
        ),
        (
            {"leader": Backwards(nn.Identity(), LinearBox())},
            r"Backwards.loss takes batch, y: .*y, b",
        ),
    ],
)
def test_arguments_in_another_order(parts, told) -> None:
    with pytest.raises(BilevelError, match=told):
        play(**parts)


def test_names_of_arguments_are_free() -> None:
    play(follower=OwnWords())


def test_what_is_compiled_is_a_network() -> None:
    leader = torch.compile(image_game()[0])
    with pytest.raises(BilevelError, match=r"an OptimizedModule: .* compile its networks"):
        play(leader=leader)


@pytest.mark.parametrize("adjoint", [Implicit(), Sampled(0.1)], ids=repr)
def test_an_adjoint_has_a_leader_to_differentiate_by(adjoint) -> None:
    follower = LinearBox()
    solver = Iterative(CoordinateRNN(0.1), 2)
    optimizer = torch.optim.SGD(solver.parameters(), lr=0.1)
    leader = ZeroSum(nn.Identity(), follower)
    with pytest.raises(BilevelError, match=r"has nothing to do: .* give Detached\(\) or Unrolled"):
        Bilevel(leader, follower, solver, leader_opt=None, solver_opt=optimizer, adjoint=adjoint)


def test_what_is_frozen_beside_an_implicit_adjoint() -> None:
    """A whole answer, or a part of an update, which is no part of the answer."""
    rnn = CoordinateRNN(0.1)
    next(rnn.parameters()).requires_grad_(False)
    leader = Weights(3)
    theta = torch.optim.SGD(leader.parameters(), lr=0.1)
    for solver in (Iterative(rnn, 2), Parametric(torch.ones(1)).requires_grad_(False)):
        phi = torch.optim.SGD(solver.parameters(), lr=0.1)
        Bilevel(leader, Nearest(), solver, leader_opt=theta, solver_opt=phi, adjoint=Implicit())


@pytest.mark.parametrize("player", ["leader", "solver"])
def test_lazy_modules_have_seen_data(player: str) -> None:
    follower, lazy = LinearBox(), nn.LazyLinear(1)
    leader = ZeroSum(lazy if player == "leader" else nn.Linear(2, 1), follower)
    solver = Parametric(lazy) if player == "solver" else pgm(0.1, 1)
    with pytest.raises(BilevelError, match=f"the {player} has a lazy module that has not seen"):
        Bilevel(leader, follower, solver, leader_opt=None)


def test_the_followers_place_in_a_zero_sum_leader() -> None:
    for follower, kind in ((nn.Linear(1, 1), "a Linear"), (LinearBox, "the class LinearBox")):
        with pytest.raises(BilevelError, match=f"follower is {kind}: .*the network first"):
            ZeroSum(nn.Linear(1, 1), follower)


class Own(Weights):
    """With a loss module by the name of its method, as is natural to write."""

    def __init__(self) -> None:
        super().__init__(3)
        self.loss = nn.MSELoss()


class Contextual(nn.Module, Nearest):
    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(3, 3)


class Kept(Nearest):
    def __init__(self) -> None:
        self.keep = 0.9


@pytest.mark.parametrize(
    ("leader", "follower", "name"),
    [
        (Own(), Nearest(), "loss"),
        (Weights(3), Contextual(), "context"),
        (Weights(3), Kept(), "keep"),
    ],
)
def test_attributes_by_the_names_of_methods(leader: Any, follower: Any, name: str) -> None:
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    told = rf"has {name} in its class, and self\.{name} was set .* rename what was set"
    with pytest.raises(BilevelError, match=told):
        Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer, adjoint=Implicit())


def test_a_method_without_the_batch() -> None:
    class Short(Nearest):
        def init(self):
            return torch.zeros(3)

    leader = Weights(3)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    with pytest.raises(BilevelError, match=r"Short\.init takes nothing: it is called with batch"):
        Bilevel(leader, Short(), pgm(0.1, 1), leader_opt=optimizer, adjoint=Implicit())


def test_a_leader_does_not_register_what_the_solver_trains() -> None:
    leader, follower, _ = image_game()
    leader.critic = nn.Linear(1, 1)
    with pytest.raises(BilevelError, match="a leader finds a discriminator through its follower"):
        Bilevel(leader, follower, Parametric(leader.critic), leader_opt=None)


def test_a_leader_is_projected_in_place() -> None:
    class Fraction(ZeroSum):
        def project(self) -> torch.Tensor:
            return self.model.x.clamp(0, 1)

    with pytest.raises(BilevelError, match=r"Fraction\.project returned a Tensor: .* in place"):
        zero_sum_game(Fraction(Scalar(3.0), Saddle())).step(None)
    Fraction.project = lambda self: self.model.x.clamp_(0, 1)
    zero_sum_game(leader := Fraction(Scalar(3.0), Saddle())).step(None)
    assert leader.model.x <= 1


def test_a_setting_that_was_computed_from_a_parameter() -> None:
    """It would stay as it was when the update was built, whatever the leader learns."""
    leader = Weights(3)

    def build(lr: torch.Tensor) -> None:
        solver = Iterative(Momentum(Optimizer(torch.optim.SGD, lr=lr), 0.5), 1)
        sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
        Bilevel(leader, Nearest(), solver, leader_opt=sgd, adjoint=Unrolled())

    leader.rate = nn.Parameter(torch.tensor(0.1))
    build(leader.rate)
    with pytest.raises(BilevelError, match=r"^lr of Optimizer.* was computed once, .* forward of"):
        build(2 * leader.rate)


def test_a_leader_and_a_follower_that_hold_each_other() -> None:
    class Holding(Saddle, nn.Module):
        def __init__(self) -> None:
            super().__init__()

    held, leader = Holding(), Weights(1)
    held.leader, leader.follower = leader, held
    with pytest.raises(BilevelError, match=r"Weights is a module within itself.*Holding"):
        Bilevel(leader, held, pgm(0.1, 1), leader_opt=None, adjoint=Detached())


@pytest.mark.parametrize("part", ["adjoint", "schedule"])
def test_a_part_that_is_empty_is_no_part_left_out(part: str) -> None:
    class Recorded(Unrolled if part == "adjoint" else Alternating):
        def __len__(self) -> int:
            return 0

    leader, parts = Weights(3), {"adjoint": Unrolled(), part: Recorded()}
    sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, Nearest(), Iterative(Gradient(0.1), 1), leader_opt=sgd, **parts)
    assert isinstance(getattr(game, part), Recorded)
