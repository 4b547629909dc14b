"""`Bilevel`: each player moves its own parameters along its own gradient, and nobody else's."""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
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
    NonFiniteError,
    Optimistic,
    Parametric,
    Simultaneous,
    Unrolled,
    Update,
    ZeroSum,
    pgm,
)
from bilevel.robustness import Batch, Linf
from bilevel.testing import check_follower, check_solver, check_update
from bilevel.updates import CNN, Gradient
from tests.problems import BatchNormNet, Saddle, Scalar, image_game, images

SCHEDULES = [
    Simultaneous(),
    Alternating(),
    Alternating(first="follower"),
    Extragradient(),
    Optimistic(),
    Lookahead(),
]


def sgd(module: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr)


def make(leader, follower, solver, **settings) -> Bilevel:
    """A game in which both players take gradient steps."""
    optimizers = {"leader_opt": sgd(leader), "solver_opt": sgd(solver)}
    return Bilevel(leader, follower, solver, **{**optimizers, **settings})


class Divergence(FollowerProblem):
    """max over δ of the divergence from the clean answer, as in TRADES."""

    sense = "max"

    def init(self, batch):
        return 1e-3 * torch.randn_like(batch.x)

    def context(self, y, batch):
        return batch.x + y

    def objective(self, leader, y, batch):
        clean, moved = (leader.model(x).log_softmax(1) for x in (batch.x, batch.x + y))
        return F.kl_div(moved, clean, log_target=True, reduction="none").sum(1)


class Trades(ZeroSum):
    def loss(self, y, batch):
        return F.cross_entropy(self.model(batch.x + y), batch.y)


def test_a_zero_sum_leader_with_a_loss_of_its_own_is_not_zero_sum() -> None:
    follower = Divergence()
    leader = Trades(BatchNormNet(), follower)
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    with pytest.raises(BilevelError, match="Trades is not zero-sum with Divergence"):
        Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=sgd(leader, 0.0),
        solver_opt=sgd(solver, 0.0),
        adjoint=Detached(),
    )
    metrics = game.step(images())
    assert metrics["objective_after"] != metrics["loss"]
    assert metrics["objective_after"] > 0  # a divergence


def test_a_parameter_of_both_players_is_refused() -> None:
    leader, follower, _ = image_game()

    class Reads(Update):
        def __init__(self) -> None:
            super().__init__()
            self.model = leader.model

        def forward(self, y, gradient, context, state):
            return y + self.model(context).mean(), state

    solver = Iterative(Reads(), 1)
    with pytest.raises(BilevelError, match=r"update\.model\.layers\.0\.weight is the leader's too"):
        Bilevel(leader, follower, solver, leader_opt=sgd(leader), solver_opt=sgd(solver))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_what_belongs_to_no_player_is_left_alone(schedule) -> None:
    """A teacher inside the follower, and the batch, gather no gradients; nor is it trained."""

    class Taught(FollowerProblem, nn.Module):
        sense = "max"

        def __init__(self) -> None:
            super().__init__()
            self.teacher = BatchNormNet()

        def init(self, batch):
            return torch.zeros_like(batch.x)

        def objective(self, leader, y, batch):
            answers = leader.model(batch.x + y), self.teacher(batch.x + y)
            return (answers[0] - answers[1]).square().sum(1)

    follower = Taught()
    leader = ZeroSum(BatchNormNet(), follower)
    assert len(list(leader.parameters())) == len(list(leader.model.parameters()))
    solver = Iterative(CNN(1, 0.1, form="two-layer", inputs=("gradient",), width=4), 1)
    game = make(leader, follower, solver, schedule=schedule)
    batch = images()
    batch.x.requires_grad_()
    before = [p.detach().clone() for p in follower.teacher.parameters()]
    game.step(batch)
    assert batch.x.grad is None
    for parameter, old in zip(follower.teacher.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_player_that_is_frozen_stands_still_while_the_other_plays(schedule) -> None:
    leader, follower, batch = image_game()
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4, gradient_skip=1.0), 1)
    game = make(leader, follower, solver, schedule=schedule)
    game.step(batch)
    for frozen_one, other in ((solver, leader), (leader, solver)):
        frozen_one.requires_grad_(False)
        before = copy.deepcopy([list(player.parameters()) for player in (frozen_one, other)])
        for _ in range(6):
            game.step(batch)
        still, moved = (
            [torch.equal(p, q) for p, q in zip(player.parameters(), old, strict=True)]
            for player, old in zip((frozen_one, other), before, strict=True)
        )
        assert all(still)
        assert not all(moved)
        frozen_one.requires_grad_(True)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_parameter_that_no_answer_reads_stands_still(schedule) -> None:
    leader, follower, batch = image_game()
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    solver.unread = nn.Parameter(torch.ones(()))
    make(leader, follower, solver, schedule=schedule).step(batch)
    assert solver.unread.item() == 1.0


def test_a_look_ahead_at_what_is_not_finite_is_no_move() -> None:
    class Steep(Saddle):
        def objective(self, leader, y, batch):
            return super().objective(leader, y, batch) + leader.model.x.exp().exp()

    follower = Steep()
    leader, solver = ZeroSum(Scalar(1.0), follower), Parametric(torch.tensor(0.0).double())
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=10.0, maximize=True),
        solver_opt=sgd(solver),
        schedule=Extragradient(),
    )
    with pytest.raises(NonFiniteError):
        game.step(None)
    assert leader.model.x.item() == 1.0
    assert solver.y.item() == 0.0


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
        leader_opt=sgd(leader),
        solver_opt=sgd(solver, 10.0),
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
    game = Bilevel(leader, follower, solver, leader_opt=sgd(leader), adjoint=Detached())
    game.solver.answer = lambda oracle: oracle.init()
    with pytest.raises(BilevelError, match=r"project does not return the names \['weight', 'bias'"):
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

    optimizer = sgd(leader)
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


def test_a_follower_is_checked_while_the_leader_is_frozen() -> None:
    leader, follower, batch = image_game()
    before = copy.deepcopy(leader.state_dict())
    check_follower(follower, leader.train(), batch)
    assert all(torch.equal(value, before[name]) for name, value in leader.state_dict().items())


def test_a_check_leaves_the_random_numbers_as_they_come() -> None:
    leader, follower, batch = image_game()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_solver(pgm(0.1, 2), follower, leader, batch)
    assert torch.equal(torch.rand(3), expected)


class Reaches(LeaderProblem):
    """min over θ of ½ (y*(θ) − 1)² + ½ (θ − 0.3)² with y* = 2θ, attained at θ = 2.3 / 5."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1).double())

    def loss(self, y, batch):
        return ((y - 1).square() + (self.theta - 0.3).square()).sum() / 2


class Doubles(FollowerProblem):
    sense = "min"

    def init(self, batch):
        return torch.zeros(1).double()

    def objective(self, leader, y, batch):
        return (y - 2 * leader.theta).square().sum() / 2


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=repr)
def test_an_optimizer_that_asks_again_is_asked_about_the_same_function(adjoint) -> None:
    """L-BFGS compares gradients of several points: at each the follower answers anew."""
    leader, solver = Reaches(), Iterative(Gradient(0.5), 60)
    lbfgs = torch.optim.LBFGS(leader.parameters(), lr=1.0, max_iter=10)
    game = Bilevel(leader, Doubles(), solver, leader_opt=lbfgs, adjoint=adjoint)
    game.step(None)
    assert leader.theta.item() == pytest.approx(2.3 / 5, abs=1e-9)
    leader, warm = Reaches(), Iterative(Gradient(0.5), 60, warm_start=True)
    lbfgs = torch.optim.LBFGS(leader.parameters())
    with pytest.raises(BilevelError, match=r"LBFGS evaluates .* warm_start=False"):
        Bilevel(leader, Doubles(), warm, leader_opt=lbfgs, adjoint=adjoint).step(None)


def test_an_update_of_the_solver_that_the_adjoint_reads_is_the_same_one() -> None:
    """Copied with the adjoint, it would stay untrained."""
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    leader, follower, _ = image_game()
    game = make(leader, follower, solver, adjoint=Implicit(fixed_point=solver.update))
    assert game.adjoint.fixed_point is solver.update


def test_gradients_may_be_clipped_between_closure_and_step() -> None:
    class Clipped(torch.optim.SGD):
        def step(self, closure):
            def clipped():
                loss = closure()
                nn.utils.clip_grad_norm_(self.param_groups[0]["params"], max_norm=1e-3)
                return loss

            return super().step(clipped)

    leader, follower, batch = image_game()
    before = torch.cat([p.detach().flatten() for p in leader.parameters()])
    optimizer = Clipped(leader.parameters(), lr=1.0)
    Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer).step(batch)
    after = torch.cat([p.detach().flatten() for p in leader.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


# A warm start.

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
    _, state = solver.get_extra_state()
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


# States.


@pytest.mark.parametrize("written", [Simultaneous(), Lookahead()], ids=repr)
def test_a_state_of_another_schedule_changes_nothing(written) -> None:
    def game(schedule) -> Bilevel:
        leader, follower, _ = image_game()
        return Bilevel(leader, follower, pgm(0.1, 1), leader_opt=sgd(leader), schedule=schedule)

    source, target = game(written), game(Optimistic())
    source.step(images())
    target.step(images())
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(BilevelError, match="the schedule has state"):
        target.load_state_dict(source.state_dict())
    for name, value in before["leader"].items():
        assert torch.equal(target.leader.state_dict()[name], value), name
    with pytest.raises(BilevelError, match="the schedule has state"):
        source.load_state_dict(before)


def test_a_state_with_another_optimizer_changes_nothing() -> None:
    def game(groups: int) -> Bilevel:
        leader, follower, _ = image_game()
        parameters = list(leader.parameters())
        parts = [parameters[:2], parameters[2:]] if groups == 2 else [parameters]
        optimizer = torch.optim.SGD([{"params": part} for part in parts], lr=0.1)
        return Bilevel(leader, follower, pgm(0.1, 1), leader_opt=optimizer)

    source, target = game(2), game(1)
    before = copy.deepcopy(target.leader.state_dict())
    with pytest.raises(BilevelError, match="does not fit"):
        target.load_state_dict(source.state_dict())
    for name, value in before.items():
        assert torch.equal(target.leader.state_dict()[name], value), name


def test_a_leader_without_parameters_comes_back_too() -> None:
    """Its optimizer moves something else: a step of evolution on a buffer, say."""

    class Still:
        def step(self, closure):
            closure()

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    follower = Saddle()
    leader = ZeroSum(nn.Module(), follower)
    leader.model.register_buffer("x", torch.tensor(2.0).double())
    solver = Parametric(torch.tensor(0.0).double())
    optimizer = sgd(solver)
    game = Bilevel(leader, follower, solver, leader_opt=Still(), solver_opt=optimizer)
    game.step(None)
    state = copy.deepcopy(game.state_dict())
    game.step(None)
    game.load_state_dict(state)
    assert solver.y.item() == pytest.approx(0.2)
