"""What a follower returns: starts, projections and answers of any structure, all checked."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    Extragradient,
    FollowerProblem,
    Implicit,
    Iterative,
    LeaderProblem,
    Lookahead,
    Optimistic,
    Parametric,
    Simultaneous,
    Solver,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.checks.first_answer import check_feasible
from bilevel.testing import check_follower, check_solver
from bilevel.updates import Gradient, Optimizer, Update
from tests.problems import Apart, LinearBox, Pulled, image_game


def play(follower: FollowerProblem | None = None, solver: Solver | None = None) -> None:
    leader, linf, batch = image_game()
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(
        leader,
        follower or linf,
        solver or pgm(0.1, 2),
        leader_opt=optimizer,
        adjoint=Detached(),
    )
    game.step(batch)


SCHEDULES = [
    Simultaneous(),
    Alternating(),
    Alternating(first="follower"),
    Extragradient(),
    Optimistic(),
    Lookahead(),
]


class GAN(LeaderProblem):
    """A generator of one number a sample against a linear discriminator whose weights are y."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def loss(self, y, batch):
        return -functional_call(nn.Linear(1, 1), y, (batch + self.shift,)).mean()


class Discriminator(FollowerProblem):
    """Weights in a box, its names in another order in project than in init."""

    sense = "max"

    def init(self, batch):
        return {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}

    def objective(self, leader, y, batch):
        network = nn.Linear(1, 1)
        real = functional_call(network, y, (batch + 3,))
        fake = functional_call(network, y, (batch + leader.shift,))
        return (real - fake).mean()

    def project(self, y, batch):
        return {name: y[name].clamp(-1, 1) for name in ("bias", "weight")}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_names_of_a_dict_come_in_any_order(schedule) -> None:
    leader, follower, batch = GAN(), Discriminator(), torch.randn(8, 1)
    solver = Parametric(follower.init(batch))
    assert [name for name, _ in solver.y.named_parameters()] == ["weight", "bias"]
    check_follower(follower, leader, batch)
    check_solver(Parametric(follower.init(batch)), follower, leader, batch)
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=10.0),
        adjoint=Detached(),
        schedule=schedule,
    )
    for _ in range(3):
        metrics = game.step(batch)
    assert solver.y["weight"].item() == 1.0  # at the edge of the box
    assert metrics["objective_after"] > 0  # the follower's, in a game that is not zero-sum


def test_a_projection_that_forgets_a_name() -> None:
    class Forgets(Discriminator):
        def project(self, y, batch):
            return {"bias": y["bias"]}

    leader, follower = GAN(), Forgets()
    solver = Iterative(Gradient(0.1), 0)
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=Detached(),
    )
    game.solver.answer = lambda oracle: oracle.init()
    with pytest.raises(BilevelError, match="project returned a dict of"):
        game.step(torch.randn(4, 1))


@pytest.mark.parametrize("shape", [(5,), (1,)])
def test_one_number_a_sample(shape) -> None:
    class Weighing(FollowerProblem):
        sense = "max"

        def init(self, batch):
            return torch.zeros(shape)

        def objective(self, leader, y, batch):
            return -(y - 1).square()

    leader = ZeroSum(nn.Linear(1, 1), Weighing())
    solution = Iterative(Gradient(0.5), 1).solve(leader.follower, leader, None)
    assert torch.equal(solution.value, torch.ones(shape))
    assert solution.stats["gradient_norm"].item() == 2.0


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


def test_whole_numbers_have_no_gradient() -> None:
    class Bytes(LinearBox):
        def init(self, batch):
            return torch.zeros(batch.x.shape, dtype=torch.uint8)

    with pytest.raises(BilevelError, match=r"Bytes\.init .*torch\.uint8.*return floating point"):
        play(follower=Bytes())


class Shrinks(LinearBox):
    def project(self, y, batch):
        return y.mul_(0.5)


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

    with pytest.raises(BilevelError, match="make project idempotent"):
        play(follower=Shrinks())


class Ball(LinearBox):
    def project(self, y, batch):
        norm = y.flatten(1).norm(dim=1).clamp(min=1e-6)
        return y * (0.5 / norm).clamp(max=1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_first_answer_is_checked_up_to_rounding(dtype) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        y = Ball().project(torch.randn(4, 3, 8, 8).to(dtype), None)
        check_feasible(Ball(), y, None)


def test_a_start_outside_y_is_told_where_to_look() -> None:
    class Outside(LinearBox):
        def init(self, batch):
            return torch.ones_like(batch.x)

    for steps in (0, 2):  # also where the first step leads into Y
        with pytest.raises(BilevelError, match=r"start lies .* let init return a point of Y"):
            play(follower=Outside(), solver=pgm(0.1, steps))


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


def test_a_projection_in_place_is_checked_like_any_other() -> None:
    leader, _, batch = image_game()
    with pytest.raises(AssertionError, match=r"Shrinks\.project moves what it has projected"):
        check_follower(Shrinks(), leader, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_projection_is_idempotent_up_to_rounding(dtype) -> None:
    leader, _, batch = image_game(dtype=dtype)
    check_follower(Ball(), leader.eval(), batch)


class Formula(Solver):
    """Answers with what it was given, made without a start."""

    def __init__(self, value, *, starts: bool) -> None:
        super().__init__()
        self.value, self.starts = value, starts

    def answer(self, oracle):
        if self.starts:
            oracle.init()
        return self.value


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            torch.zeros(3, 1),
            r"returned shape \(3, 1\) where init gives \(3,\): ",
        ),
        (
            torch.zeros(1),
            r"returned shape \(1,\) where init gives \(3,\): it would be broadcast",
        ),
        ({"y": torch.zeros(3)}, r"returned a dict of \['y'\]"),
        (torch.zeros(3).numpy(), "returned an? ndarray"),
        (None, "returned None"),
        ((torch.zeros(3), None), "returned a tuple"),
    ],
    ids=["column", "single", "dict", "numpy", "none", "pair"],
)
@pytest.mark.parametrize("adjoint", [Detached(), Unrolled(), Implicit()], ids=repr)
def test_an_answer_has_the_form_of_the_start(adjoint, value, told, starts) -> None:
    class Three(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.zeros(3)

        def objective(self, leader, y, batch):
            return (y - leader.theta).square().sum()

    leader = Apart()
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = Formula(value, starts=starts)
    game = Bilevel(leader, Three(), solver, leader_opt=optimizer, adjoint=adjoint)
    with pytest.raises(BilevelError, match=rf"Formula\.answer .*{told}"):
        game.step(None)
