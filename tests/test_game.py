"""`Bilevel`: what it refuses, what it reports, and how a stopped run goes on."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilevel
from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    FollowerProblem,
    Iterative,
    MetricLog,
    NonFiniteError,
    Optimistic,
    Simultaneous,
    Solver,
    Unrolled,
    ZeroSum,
    pgm,
)
from bilevel.robustness import Batch, Linf
from bilevel.updates import CNN, MLP, Gradient
from tests.problems import Nearest, Weights, image_game, images


def make_game(schedule=None, *, solver: Solver | None = None, width: int = 4) -> Bilevel:
    leader, follower, _ = image_game()
    if solver is None:
        solver = Iterative(CNN(1, 0.1, form="two-layer", width=width), 2)
    parameters = list(solver.parameters())
    return Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1, momentum=0.9),
        solver_opt=torch.optim.Adam(parameters, lr=1e-2) if parameters else None,
        schedule=schedule,
    )


def test_the_example_of_the_design_runs_as_written() -> None:
    class Linf(bilevel.FollowerProblem):
        """max over δ of CE(f(x+δ), y), subject to ‖δ‖∞ ≤ ε and x+δ in [0, 1]."""

        sense = "max"

        def __init__(self, eps):
            self.eps = eps

        def init(self, batch):
            return torch.zeros_like(batch.x)

        def context(self, delta, batch):
            return batch.x + delta

        def objective(self, leader, delta, batch):
            return F.cross_entropy(leader.model(batch.x + delta), batch.y, reduction="none")

        def project(self, delta, batch):
            return (batch.x + delta.clamp(-self.eps, self.eps)).clamp(0, 1) - batch.x

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    loader = [Batch(torch.rand(5, 3, 8, 8), torch.arange(5) % 4) for _ in range(2)]

    follower = Linf(8 / 255)
    leader = bilevel.ZeroSum(model, follower)
    for solver in (
        bilevel.Iterative(bilevel.updates.CNN(channels=3, scale=8 / 255), steps=2),
        bilevel.pgm(2 / 255, 10),
    ):
        learned = list(solver.parameters())
        game = bilevel.Bilevel(
            leader,
            follower,
            solver,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1, momentum=0.9),
            solver_opt=torch.optim.Adam(learned, lr=1e-3) if learned else None,
        )
        for batch in loader:
            metrics = game.step(batch)
            assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
            assert metrics["loss"] == metrics["objective_after"]
            assert metrics["objective_after"] > metrics["objective_before"] or learned


@pytest.mark.parametrize(
    ("schedule", "warm"),
    [
        (Simultaneous(), False),
        (Simultaneous(), True),
        (Optimistic(), True),
        (Alternating(follower_steps=2), False),
    ],
)
def test_a_run_resumed_from_its_state_equals_the_run_never_stopped(schedule, warm) -> None:
    batches = [images() for _ in range(6)]

    def fresh() -> Bilevel:
        torch.manual_seed(7)
        solver = Iterative(MLP(6 * 16), 1, warm_start=True) if warm else None
        return make_game(copy.deepcopy(schedule), solver=solver)

    straight, stopped = fresh(), fresh()
    for batch in batches[:3]:
        straight.step(batch)
        stopped.step(batch)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = fresh()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.steps == 3
    for batch in batches[3:]:
        a, b = straight.step(batch), resumed.step(batch)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    for module in ("leader", "solver"):
        ours = getattr(straight, module).state_dict()
        theirs = getattr(resumed, module).state_dict()
        for name, value in ours.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[name]), name


def test_a_step_reads_no_number_from_the_device() -> None:
    """On the meta device every read of a number raises."""
    with torch.device("meta"):
        game = make_game()
        batch = Batch(torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.long))
    metrics = game.step(batch)
    assert all(value.is_meta for value in metrics.values())


# Bad input.


def test_a_trainable_solver_without_an_optimizer() -> None:
    leader, follower, _ = image_game()
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    with pytest.raises(BilevelError, match=r"no optimizer: it would never learn; give solver_opt"):
        Bilevel(leader, follower, solver, leader_opt=optimizer)
    Bilevel(leader, follower, solver.requires_grad_(False), leader_opt=optimizer)


def test_an_optimizer_of_the_other_players_parameters() -> None:
    leader, follower, _ = image_game()
    solver = Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (leader, solver)]
    with pytest.raises(BilevelError, match=r"leader_opt moves parameters that do not belong"):
        Bilevel(leader, follower, solver, leader_opt=optimizers[1], solver_opt=optimizers[0])


def test_a_game_that_is_not_zero_sum_names_its_adjoint() -> None:
    leader = Weights(3)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    with pytest.raises(
        BilevelError, match=r"Weights is not zero-sum with Nearest.*name the adjoint"
    ):
        Bilevel(leader, Nearest(), pgm(0.1, 1), leader_opt=optimizer)


def test_a_zero_sum_leader_with_another_follower_is_not_zero_sum() -> None:
    leader, _, _ = image_game()
    _, other, _ = image_game()
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    with pytest.raises(BilevelError, match="not zero-sum"):
        Bilevel(leader, other, pgm(0.1, 1), leader_opt=optimizer)


@pytest.mark.parametrize("beyond", [3.0, -3.0])
def test_an_answer_outside_y(beyond: float) -> None:
    class Outside(Solver):
        def answer(self, oracle):
            y = oracle.init()
            y[0, 0, 0, 0] = beyond
            return y

    game = make_game(solver=Outside())
    with pytest.raises(BilevelError, match=r"lies .* outside Y.*oracle.project"):
        game.step(images())


def test_a_nan_on_the_way_to_the_answer() -> None:
    game = make_game()
    batch = images()
    batch.x[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="pixels that are not finite"):
        game.step(batch)


@pytest.mark.parametrize(
    ("schedule", "term"),
    [
        (Simultaneous(), "leader's loss"),
        (Alternating(), "leader's loss"),
        (Alternating(first="follower"), "follower's objective"),
    ],
)
def test_a_loss_that_becomes_nan_moves_nobody(schedule, term) -> None:
    game = make_game(schedule)
    game.step(images())
    before = copy.deepcopy((game.leader.state_dict(), game.solver.state_dict()))
    batch = images()
    batch.x[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"step 1: the {term} is nan.*learning rate"):
        game.step(batch)
    for old, part in zip(before, (game.leader, game.solver), strict=True):
        for name, parameter in part.named_parameters():
            assert torch.equal(old[name], parameter), name


def test_a_step_along_a_gradient_that_is_nan_is_named_after_it() -> None:
    """The loss √0 is finite and its derivative is not, so that the step makes θ NaN."""

    class Root(FollowerProblem):
        sense = "max"

        def init(self, batch):
            return torch.zeros(1)

        def objective(self, leader, y, batch):
            return (leader.model.weight.sum() * y).square().sum().sqrt() * 0

    follower, model = Root(), nn.Linear(1, 1, bias=False)
    leader = ZeroSum(model, follower)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, pgm(0.1, 0), leader_opt=optimizer)
    game.step(None)
    with pytest.raises(NonFiniteError, match=r"step 1: .* parameters are NaN: .* sqrt, log and no"):
        game.step(None)


def test_metrics_that_are_nan_are_named_with_their_step() -> None:
    log = MetricLog()
    for value in (1.0, 2.0, float("inf"), 3.0):
        log.add({"loss": torch.tensor(value), "gradient_norm": torch.tensor(1.0)})
    with pytest.raises(NonFiniteError, match="loss is inf at step 3 of the last 4"):
        log.means()
    assert log.means() == {}


def test_a_state_of_another_architecture_changes_nothing() -> None:
    game, other = make_game(), make_game(width=8)
    before = copy.deepcopy(game.state_dict())
    with pytest.raises(BilevelError, match=r"the saved solver is of another architecture: update"):
        game.load_state_dict(other.state_dict())
    with pytest.raises(BilevelError, match="the state has no 'solver_opt'"):
        game.load_state_dict(make_game(solver=pgm(0.1, 1)).state_dict())
    for name, value in game.leader.state_dict().items():
        assert torch.equal(value, before["leader"][name])


def test_a_leader_without_one_number_is_refused() -> None:
    class Many(Weights):
        def loss(self, y, batch):
            return self.w

    leader = Many(3)
    game = Bilevel(
        leader,
        Nearest(),
        pgm(0.1, 1),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=Detached(),
    )
    with pytest.raises(BilevelError, match=r"the leader's loss has shape \(3,\).*the mean"):
        game.step(Batch(torch.ones(2, 3), torch.zeros(2)))


def test_a_leader_that_only_its_answer_depends_on_needs_an_adjoint() -> None:
    class Answer(Weights):
        def loss(self, y, batch):
            return y.mean()

    def game(adjoint, leader):
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        solver = Iterative(Gradient(0.1), 1)
        return Bilevel(leader, Nearest(), solver, leader_opt=optimizer, adjoint=adjoint)

    batch = Batch(torch.ones(2, 3), torch.zeros(2))
    with pytest.raises(
        BilevelError, match=r"leader's loss does not depend .*give the game Implicit"
    ):
        game(Detached(), Answer(3)).step(batch)
    game(Unrolled(), Answer(3)).step(batch)
    game(Detached(), Answer(3).requires_grad_(False)).step(batch)


def test_a_leader_whose_loss_is_a_plain_number_is_refused() -> None:
    class Plain(Weights):
        def loss(self, y, batch):
            return super().loss(y, batch).item()

    leader = Plain(3)
    sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, Nearest(), pgm(0.1, 1), leader_opt=sgd, adjoint=Detached())
    with pytest.raises(BilevelError, match="the leader's loss is a float: return a scalar tensor"):
        game.step(Batch(torch.ones(2, 3), torch.zeros(2)))


def test_one_parameter_that_is_nan_is_told_as_the_cause() -> None:
    class Two(Weights):
        def __init__(self) -> None:
            super().__init__(3)
            self.scale = nn.Parameter(torch.tensor(torch.nan))

        def loss(self, y, batch):
            return self.scale * super().loss(y, batch)

    leader = Two()
    sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, Nearest(), pgm(0.1, 1), leader_opt=sgd, adjoint=Detached())
    with pytest.raises(NonFiniteError, match=r"step 0: .* parameters are NaN"):
        game.step(Batch(torch.ones(2, 3), torch.zeros(2)))


def test_a_game_is_shown_by_its_parts() -> None:
    follower = Linf(0.1)
    leader = ZeroSum(nn.Identity(), follower)
    assert repr(Bilevel(leader, follower, pgm(0.1, 2), leader_opt=None)) == (
        "Bilevel(\n"
        "  (leader): ZeroSum(\n"
        "    (model): Identity()\n"
        "  )\n"
        "  (follower): Linf(eps=0.1, start=0.0, loss=cross_entropy)\n"
        "  (solver): Iterative(\n"
        "    steps=2\n"
        "    (update): SignGradient(step=0.1)\n"
        "  )\n"
        "  (adjoint): Detached()\n"
        "  (schedule): Simultaneous()\n"
        ")"
    )
