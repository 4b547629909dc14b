"""What a game says about arguments of the wrong kind, and about what a follower returns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    FollowerProblem,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Simultaneous,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.checks import check_feasible
from bilevel.testing import check_follower
from bilevel.updates import CoordinateRNN, Gradient, Optimizer, Update
from tests.problems import LinearBox, image_game


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
    ("update", "kind"),
    [
        (Gradient, "the class Gradient"),
        (torch.optim.SGD, "the class SGD"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), "a SGD"),
    ],
)
def test_an_update_is_an_update(update, kind) -> None:
    with pytest.raises(BilevelError, match=f"update is {kind}: it takes an Update; give"):
        Iterative(update, 2)


def test_an_inner_optimizer_is_given_by_its_class() -> None:
    with pytest.raises(BilevelError, match=r"optimizer is an object \(SGD\).*give its class"):
        Optimizer(torch.optim.SGD([torch.zeros(1)], lr=0.1))


@pytest.mark.parametrize(
    "start", [None, 1.0, [torch.zeros(1)], {}, {"a": {"b": torch.zeros(1)}}], ids=str
)
def test_a_start_that_is_no_variable(start) -> None:
    class Odd(LinearBox):
        def init(self, batch):
            return start

    with pytest.raises(BilevelError, match=r"Odd\.init returned .*: y is a tensor or a dict"):
        play(follower=Odd())


class Rows(LinearBox):
    """Each sample has a shift of its own and a scale."""

    def init(self, batch):
        return {"shift": torch.zeros_like(batch.x), "scale": torch.ones(len(batch.x))}

    def objective(self, leader, y, batch):
        return leader.model(batch.x * y["scale"].view(-1, 1, 1, 1) + y["shift"]).flatten(1).sum(1)

    def context(self, y, batch):
        return None

    def project(self, y, batch):
        return y


@pytest.mark.parametrize(
    ("projected", "kind"), [(None, "None"), ({"shift": torch.zeros(1)}, r"a dict of \['shift'\]")]
)
def test_a_projection_returns_what_it_was_given(projected, kind) -> None:
    class Forgets(Rows):
        def project(self, y, batch):
            return projected

    with pytest.raises(BilevelError, match=rf"Forgets\.project returned {kind} for a dict of"):
        play(follower=Forgets())


def test_points_keep_their_shapes() -> None:
    class Narrow(LinearBox):
        def project(self, y, batch):
            return y[:1]

    with pytest.raises(BilevelError, match=r"Narrow\.project returned shape \(1, .* for a tensor"):
        play(follower=Narrow())

    class Fewer(Update):
        def forward(self, y, gradient, context, state):
            return y[:2], state

    with pytest.raises(BilevelError, match=r"Fewer returned shape \(2, .* for a tensor"):
        play(solver=Iterative(Fewer(), 2))


def test_a_learned_update_of_another_precision() -> None:
    class Double(LinearBox):
        def init(self, batch):
            return torch.zeros_like(batch.x, dtype=torch.float64)

        def objective(self, leader, y, batch):
            return super().objective(leader, y.float(), batch)

    solver = Iterative(CoordinateRNN(0.1), 2)
    given = {"solver": solver, "solver_opt": torch.optim.SGD(solver.parameters(), lr=0.1)}
    with pytest.raises(BilevelError, match=r"CoordinateRNN .*float32 .*float64: .*solver\.to"):
        play(follower=Double(), **given)


def test_whole_numbers_have_no_gradient() -> None:
    class Bytes(LinearBox):
        def init(self, batch):
            return torch.zeros(batch.x.shape, dtype=torch.uint8)

    with pytest.raises(BilevelError, match=r"Bytes\.init .*torch\.uint8.*return floating point"):
        play(follower=Bytes())


def test_the_followers_place_in_a_zero_sum_leader() -> None:
    for follower, kind in ((nn.Linear(1, 1), "a Linear"), (LinearBox, "the class LinearBox")):
        with pytest.raises(BilevelError, match=f"follower is {kind}: .*the network first"):
            ZeroSum(nn.Linear(1, 1), follower)


def test_a_fixed_point_is_that_of_an_update() -> None:
    with pytest.raises(BilevelError, match=r"fixed_point is a float: it takes an Update"):
        Implicit(fixed_point=0.1)


class Apart(LeaderProblem):
    """Its loss depends on θ through y only."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3))

    def loss(self, y, batch):
        return y.square().sum()


class Pulled(FollowerProblem):
    sense = "min"

    def init(self, batch):
        return torch.zeros(3)

    def objective(self, leader, y, batch):
        return (y - leader.theta).square().sum()


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()], ids=str)
def test_a_gradient_that_reaches_only_the_solver(schedule) -> None:
    """Treated as a constant for θ, y still has a graph that leads to the solver's parameters."""
    leader, solver = Apart(), Parametric(torch.zeros(3))
    game = Bilevel(
        leader,
        Pulled(),
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
        adjoint=Detached(),
        schedule=schedule,
    )
    with pytest.raises(BilevelError, match="does not depend on the parameters that it trains"):
        game.step(None)


def test_a_field_that_the_leaders_loss_misses() -> None:
    class Late(Apart):
        def loss(self, y, batch):
            return batch["late"] * y.sum()

    leader = Late()
    game = Bilevel(
        leader,
        Pulled(),
        Iterative(Gradient(0.1), 2),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=Unrolled(),
    )
    with pytest.raises(BilevelError, match="Late cannot read a batch of type dict"):
        game.step({})


class Attention(Pulled):
    """Fused attention, which has no second derivative on the CPU."""

    def objective(self, leader, y, batch):
        x = (y - leader.theta).view(1, 1, 3, 1)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(x, x, x).square().sum()


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=str)
def test_an_operation_without_second_derivative(adjoint) -> None:
    leader = Apart()
    game = Bilevel(
        leader,
        Attention(),
        Iterative(Gradient(0.1), 2),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=adjoint,
    )
    with pytest.raises(BilevelError, match=r"operation without second derivative.*Penalty"):
        game.step(None)


def test_the_first_answer_is_checked_by_a_copy() -> None:
    """A projection may work in place; the check must not move the answer, nor miss an error."""

    class InPlace(Pulled):
        def project(self, y, batch):
            return y.clamp_(-0.1, 2)

    leader = Apart()
    game = Bilevel(
        leader,
        InPlace(),
        Iterative(Gradient(0.25), 30),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=Implicit(),
    )
    game.step(None)
    torch.testing.assert_close(leader.theta.grad, torch.full((3,), 2.0))

    class Shrinks(LinearBox):
        def project(self, y, batch):
            return y.mul_(0.5)

    with pytest.raises(BilevelError, match="make project idempotent"):
        play(follower=Shrinks())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_first_answer_is_checked_up_to_rounding(dtype) -> None:
    class Ball(LinearBox):
        def project(self, y, batch):
            norm = y.flatten(1).norm(dim=1).clamp(min=1e-6)
            return y * (0.5 / norm).clamp(max=1).view(-1, 1, 1, 1)

    for seed in range(20):
        torch.manual_seed(seed)
        y = Ball().project(torch.randn(4, 3, 8, 8).to(dtype), None)
        check_feasible(Ball(), y, None)


def test_a_start_outside_y_is_told_where_to_look() -> None:
    class Outside(LinearBox):
        def init(self, batch):
            return torch.ones_like(batch.x)

    with pytest.raises(BilevelError, match="let init return a point of Y"):
        play(follower=Outside(), solver=pgm(0.1, 0))


def test_a_number_that_the_batch_shares_beside_rows() -> None:
    class Shared(Rows):
        def init(self, batch):
            return {**super().init(batch), "scale": torch.ones(())}

    leader, _, batch = image_game()
    with pytest.raises(AssertionError, match="must be one value per sample"):
        check_follower(Shared(), ZeroSum(leader.model, Shared()), batch)


def test_rows_in_a_dict_are_moved_as_if_each_were_alone() -> None:
    leader, _, batch = image_game()
    follower = Rows()
    leader = ZeroSum(leader.model, follower)
    solver = Iterative(Optimizer(torch.optim.Adam, lr=0.1), 3)
    together = solver.solve(follower, leader, batch).value
    alone = solver.solve(follower, leader, type(batch)(batch.x[:1], batch.y[:1])).value
    for name in together:
        torch.testing.assert_close(together[name][:1], alone[name])


def test_a_leader_does_not_register_what_the_solver_trains() -> None:
    leader, follower, _ = image_game()
    leader.critic = nn.Linear(1, 1)
    with pytest.raises(BilevelError, match="a leader finds a discriminator through its follower"):
        Bilevel(leader, follower, Parametric(leader.critic), leader_opt=None)


def test_a_projection_in_place_is_checked_like_any_other() -> None:
    class Halves(LinearBox):
        def project(self, y, batch):
            return y.mul_(0.5)

    leader, _, batch = image_game()
    with pytest.raises(AssertionError, match=r"Halves\.project moves what it has projected"):
        check_follower(Halves(), leader, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_projection_is_idempotent_up_to_rounding(dtype) -> None:
    class Ball(LinearBox):
        def project(self, y, batch):
            norm = y.flatten(1).norm(dim=1).clamp(min=1e-6)
            return y * (0.5 / norm).clamp(max=1).view(-1, 1, 1, 1)

    leader, _, batch = image_game(dtype=dtype)
    check_follower(Ball(), leader.eval(), batch)
