"""What a game says about what the functions of its parts return, and where they are called."""

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
    Extragradient,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Lookahead,
    Parametric,
    Penalty,
    Sampled,
    Simultaneous,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.robustness import Batch, Linf
from bilevel.testing import check_update
from bilevel.updates import CoordinateRNN, Gradient, Momentum, Optimizer, Update
from tests.problems import (
    Apart,
    LinearBox,
    Nearest,
    Pulled,
    Saddle,
    Scalar,
    Weights,
    image_game,
    zero_sum_game,
)


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        (Gradient, "the class Gradient"),
        (torch.optim.SGD, "the class SGD"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), "a SGD"),
    ],
)
def test_an_update_is_an_update(update, kind) -> None:
    with pytest.raises(BilevelError, match=f"update is {kind}: it takes an object of type Update"):
        Iterative(update, 2)


def test_an_inner_optimizer_is_given_by_its_class() -> None:
    with pytest.raises(BilevelError, match=r"optimizer is an object \(SGD\).*give its class"):
        Optimizer(torch.optim.SGD([torch.zeros(1)], lr=0.1))


def test_a_learned_update_of_another_precision() -> None:
    class Double(LinearBox):
        def init(self, batch):
            return torch.zeros_like(batch.x, dtype=torch.float64)

        def objective(self, leader, y, batch):
            return super().objective(leader, y.float(), batch)

    solver = Iterative(CoordinateRNN(0.1), 2)
    leader, _, batch = image_game()
    optimizers = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (leader, solver))
    game = Bilevel(
        leader,
        Double(),
        solver,
        leader_opt=next(optimizers),
        solver_opt=next(optimizers),
        adjoint=Detached(),
    )
    with pytest.raises(BilevelError, match=r"CoordinateRNN .*float32 .*float64: .*its \.to"):
        game.step(batch)


def test_a_fixed_point_is_that_of_an_update() -> None:
    with pytest.raises(BilevelError, match="fixed_point is a float: it takes an object"):
        Implicit(fixed_point=0.1)


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


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()], ids=str)
@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit(), Forward()], ids=str)
def test_a_gradient_that_reaches_only_the_leader(adjoint, schedule) -> None:
    """Through the answer, which does not lead to the learned step size: it would never learn."""

    class Learned(Update):
        def __init__(self) -> None:
            super().__init__()
            self.step = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, y, gradient, context, state):
            return y + self.step.item() * gradient, state

    leader, solver = Apart(), Iterative(Learned(), 3)
    game = Bilevel(
        leader,
        Pulled(),
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
        adjoint=adjoint,
        schedule=schedule,
    )
    with pytest.raises(BilevelError, match="follower's objective does not depend on the param"):
        game.step(None)


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit(), Forward()])
def test_an_objective_that_does_not_read_the_answer(adjoint) -> None:
    class Deaf(Nearest):
        def objective(self, leader, y, batch):
            return leader.w.sum().expand(len(batch.x))

    leader = Weights(4)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = Iterative(Gradient(0.5), 2)
    game = Bilevel(leader, Deaf(), solver, leader_opt=optimizer, adjoint=adjoint)
    with pytest.raises(BilevelError, match=r"Deaf\.objective does not depend on y"):
        game.step(Batch(torch.ones(2, 4), torch.zeros(2)))


def test_an_error_of_ones_own_is_no_missing_field() -> None:
    class Own(Saddle):
        def objective(self, leader, y, batch):
            raise AttributeError("mine")

    own = Own()
    with pytest.raises(AttributeError, match="mine"):
        pgm(0.1, 1).solve(own, ZeroSum(Scalar(1.0), own), None)


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
    with pytest.raises(BilevelError, match=r"Late reads a key 'late', .* \(it has nothing\)"):
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


@pytest.mark.parametrize("adjoint", [Implicit(), Forward()], ids=str)
def test_an_operation_without_second_derivative_outside_a_game(adjoint) -> None:
    solver = Iterative(Gradient(0.1), 2)
    value = adjoint.solve(solver, Attention(), Apart(), None).value
    with pytest.raises(BilevelError, match=r"operation without second derivative.*Penalty"):
        value.sum().backward()


@pytest.mark.skipif(torch.__version__ < "2.14", reason="torch computes it uncompiled, and rightly")
@pytest.mark.parametrize("rows", [4, 3])
def test_a_compiled_network_has_none(rows) -> None:
    """In other words where it is compiled anew, for a batch of another size."""
    torch.compiler.reset()  # else it may know the sizes from another test

    class Features(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3))

        def loss(self, y, batch):
            return (self.network(batch[1]) @ y).square().mean()

    class Head(Pulled):
        def objective(self, leader, y, batch):
            return (leader.network(batch[0]) @ y - 1).square().mean()

    leader = Features()
    leader.network.compile(backend="aot_eager")
    game = Bilevel(
        leader,
        Head(),
        Iterative(Gradient(0.1), 2),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=Forward(),
    )
    with pytest.raises(BilevelError, match=r"operation without second derivative.*uncompiled"):
        game.step((torch.randn(4, 2), torch.randn(rows, 2)))


def test_a_compiled_network_whose_last_steps_alone_are_differentiated() -> None:
    """The first steps have compiled a backward pass that frees what the others need."""
    torch.compiler.reset()
    leader, follower, batch = image_game()
    leader.model.compile(backend="aot_eager")
    solver = Iterative(Gradient(0.1), 3)
    told = pytest.raises(BilevelError, match=r"operation without second derivative.*uncompiled")
    with torch._functorch.config.patch(donated_buffer=True), told:  # as torch has it
        Unrolled(truncate=1).solve(solver, follower, leader, batch)


def test_the_words_of_a_forgotten_return() -> None:
    leader, follower, batch = image_game()

    class Silent(Linf):
        def objective(self, leader, y, batch):
            super().objective(leader, y, batch)

    class Alone(Update):
        def forward(self, y, gradient, context, state):
            return y[:2]  # as long as a pair

    class Three(Update):
        def forward(self, y, gradient, context, state):
            return y, state, None

    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    follower_of_none = Silent(0.1)
    with pytest.raises(BilevelError, match="objective returned a NoneType: return a tensor"):
        pgm(0.1, 1).solve(follower_of_none, leader, batch)
    with pytest.raises(BilevelError, match=r"Alone returned a Tensor.*return y, state"):
        Iterative(Alone(), 1).solve(follower, leader, batch)
    with pytest.raises(BilevelError, match=r"Three returned a tuple.*return y, state"):
        Iterative(Three(), 1).solve(follower, leader, batch)
    with pytest.raises(AssertionError, match="Alone returns a Tensor where"):
        check_update(Alone(), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="abstract"):
        LeaderProblem()

    class Lazy(torch.optim.SGD):
        def step(self, closure=None):
            pass

    lazy = Lazy(leader.parameters(), lr=0.1)
    with pytest.raises(BilevelError, match=r"Lazy\.step did not call its closure"):
        Bilevel(leader, follower, pgm(0.1, 1), leader_opt=lazy).step(batch)
    assert Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer).step(batch)["loss"] > 0


def test_there_is_no_training_in_inference_mode() -> None:
    follower = Saddle()
    leader, solver = ZeroSum(Scalar(1.0), follower), Parametric(torch.tensor(1.0))
    optimizers = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (leader, solver))
    game = Bilevel(
        leader, follower, solver, leader_opt=next(optimizers), solver_opt=next(optimizers)
    )
    with (
        torch.inference_mode(),
        pytest.raises(BilevelError, match=r"no gradient in torch.inference_mode\(\): train"),
    ):
        game.step(None)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Momentum(torch.nn.Linear(2, 2), 0.9), "update is a Linear: .* SignGradient"),
        (lambda: Lookahead(5), "inner is an int: .*type Schedule; give Extragradient"),
        (lambda: Lookahead(Extragradient), "inner is the class Extragradient"),
        (lambda: Penalty(1.0, update=torch.optim.SGD), "update is the class SGD"),
        (lambda: Sampled(float("inf")), "scale is inf: it is positive and finite"),
        (lambda: Forward(limit="a"), "limit is 'a': it must be a whole number"),
    ],
)
def test_an_argument_of_the_wrong_kind(make, told) -> None:
    with pytest.raises(BilevelError, match=told):
        make()


def test_complex_numbers_have_no_order() -> None:
    class Turned(Saddle):
        def objective(self, leader, y, batch):
            return leader.model.x * y * 1j

    with pytest.raises(BilevelError, match=r"Turned\.objective is complex: .* real part"):
        zero_sum_game(ZeroSum(Scalar(1.0), Turned())).step(None)

    class Imaginary(ZeroSum):
        def loss(self, y, batch):
            return super().loss(y, batch) * 1j

    with pytest.raises(BilevelError, match=r"leader's loss is complex: .* real part"):
        zero_sum_game(Imaginary(Scalar(1.0), Saddle()), adjoint=Detached()).step(None)


def test_a_gradient_in_the_variables_of_the_other_player() -> None:
    class Matching(ZeroSum):
        def loss(self, y, batch):
            value = super().loss(y, batch)
            return torch.autograd.grad(value, y, create_graph=True)[0].square()

    class Consensus(Saddle):
        def objective(self, leader, y, batch):
            value = super().objective(leader, y, batch)
            return torch.autograd.grad(value, leader.model.x, create_graph=True)[0].square()

    told = r"while one player moves, .* are constants; .*\.detach\(\)\.requires_grad_\(\)"
    with pytest.raises(BilevelError, match=f"Matching takes a gradient .* {told}"):
        zero_sum_game(Matching(Scalar(1.0), Saddle()), adjoint=Detached()).step(None)
    follower = Consensus()
    with pytest.raises(BilevelError, match=f"Consensus takes a gradient .* {told}"):
        zero_sum_game(ZeroSum(Scalar(1.0), follower), schedule=Alternating()).step(None)
