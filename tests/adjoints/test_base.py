"""Every adjoint in a game: a hyperparameter learned to its optimum, warnings, refusals."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    Alternating,
    Bilevel,
    BilevelError,
    Detached,
    Extragradient,
    FollowerProblem,
    Forward,
    HypergradientWarning,
    Implicit,
    Iterative,
    Lookahead,
    MetricLog,
    Penalty,
    Sampled,
    Schedule,
    Simultaneous,
    Unrolled,
)
from bilevel.robustness import Batch
from bilevel.updates import Gradient
from tests.problems import Nearest, Weights
from tests.valleys import F64, Decay, Shrunk

ADJOINTS: dict[str, Adjoint] = {
    "unrolled": Unrolled(),
    "recomputed": Unrolled(recompute=True),
    "truncated": Unrolled(truncate=20),
    "implicit": Implicit(tolerance=1e-10),
    "fixed point": Implicit(fixed_point=Gradient(0.1)),
    "penalty": Penalty(100.0),
    "forward": Forward(),
    "sampled": Sampled(0.1, samples=16),
}


CASES = [
    *((name, schedule) for name in ADJOINTS for schedule in (Simultaneous(), Alternating())),
    ("unrolled", Extragradient()),
    ("implicit", Lookahead()),
]


@pytest.mark.parametrize(("name", "schedule"), CASES, ids=str)
def test_a_hyperparameter_is_learned_to_its_optimum(name: str, schedule: Schedule) -> None:
    leader, batch = Decay(), torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    game = Bilevel(
        leader,
        Shrunk(),
        Iterative(Gradient(0.3), 30),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=1.0),
        adjoint=ADJOINTS[name],
        schedule=schedule,
    )
    metrics = [game.step(batch) for _ in range({"implicit": 60, "sampled": 12}.get(name, 25))]
    assert leader.theta.exp().item() == pytest.approx(2, rel=0.03 if name == "sampled" else 1e-3)
    assert all(value.isfinite() for value in metrics[0].values())  # filled by the backward pass
    assert metrics[0]["evaluations"] >= 30
    assert metrics[-1]["loss"] < 1e-2 * metrics[0]["loss"]


class Sized(FollowerProblem):
    """min over numbers y_i, one a sample, of ½(y_i − e^θ b_i)²: y* = e^θ b."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: Decay, y: Tensor, batch: Tensor) -> Tensor:
        return (y - leader.theta.exp() * batch).square() / 2


@pytest.mark.parametrize("name", ADJOINTS)
def test_the_gradient_evaluations_of_the_solve_are_counted(name: str) -> None:
    solver, batch = Iterative(Gradient(0.1), 301), torch.ones(3, dtype=torch.bfloat16)
    solution = ADJOINTS[name].solve(solver, Shrunk(), Decay(), batch)
    assert solution.evaluations == solution.stats["evaluations"].item() == 301  # bfloat16: 300


@pytest.mark.parametrize("adjoint", [Detached(), *ADJOINTS.values()], ids=repr)
def test_no_pass_is_spent_on_the_objective_at_the_answer(adjoint: Adjoint) -> None:
    """The leader's loss is evaluated there anyway."""
    solver, batch = Iterative(Gradient(0.3), 30), torch.ones(3, dtype=F64)
    stats = adjoint.solve(solver, Shrunk(), Decay(), batch).stats
    assert "objective_before" in stats
    assert "objective_after" not in stats


@pytest.mark.parametrize("adjoint", [Detached(), *ADJOINTS.values()], ids=repr)
def test_a_solver_is_asked_whether_it_is_made_for_the_problem(adjoint: Adjoint) -> None:
    class Picky(Iterative):
        def check(self, follower: FollowerProblem) -> None:
            raise BilevelError("Picky does not solve this")

    with pytest.raises(BilevelError, match="Picky does not solve this"):
        adjoint.solve(Picky(Gradient(0.1), 1), Shrunk(), Decay(), torch.ones(3, dtype=F64))


@pytest.mark.parametrize("name", ADJOINTS)
def test_one_number_a_sample(name: str) -> None:
    leader, batch = Decay(), torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    solver = Iterative(Gradient(0.3), 20 if name == "sampled" else 60)
    slopes = []
    for _ in range(20 if name == "sampled" else 1):  # which is right on the mean only
        value = ADJOINTS[name].solve(solver, Sized(), leader, batch).value
        slopes += torch.autograd.grad(value, leader.theta, torch.ones_like(batch))
    slope = torch.stack(slopes).mean().item()
    expected = (1 - 0.7 ** (20 if name in ("truncated", "sampled") else 60)) * batch.sum()
    assert slope == pytest.approx(expected.item(), rel=0.5 if name == "sampled" else 1e-4)


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=repr)
def test_a_leader_that_is_content_has_no_gradient_and_nothing_to_judge(adjoint: Adjoint) -> None:
    class Content(Decay):
        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            return (y.square().sum() - 1e9).relu() + self.theta

    leader, log = Content(), MetricLog()
    game = Bilevel(
        leader,
        Shrunk(),
        Iterative(Gradient(0.3), 30),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=1.0),
        adjoint=adjoint,
    )
    log.add(game.step(torch.ones(3, dtype=F64)))
    assert log.means().keys() == {"loss", "objective_before", "gradient_norm", "evaluations"}
    assert leader.theta.grad == 1


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("name", ["penalty", "sampled"])
def test_answers_that_do_not_move_are_no_reason_for_nan(name: str) -> None:
    class Held(Shrunk):
        def project(self, y: Tensor, batch: Tensor) -> Tensor:
            return y.clamp(max=0.01)

    solver = Iterative(Gradient(0.3), 30)
    solution = ADJOINTS[name].solve(solver, Held(), Decay(), torch.ones(3, dtype=F64))
    solution.value.sum().backward()
    assert all(number.isfinite() for number in solution.stats.values())


PULLBACKS = [a for a in ADJOINTS.values() if not isinstance(a, Unrolled)]


def test_each_topic_is_warned_of_once() -> None:
    adjoint, other = Detached(), Detached()

    def warn() -> None:
        adjoint.warn_once(False, "wrong: not yet")
        adjoint.warn_once(torch.tensor(False), "wrong: not yet")
        adjoint.warn_once(torch.ones((), device="meta"), "wrong: unread")
        adjoint.warn_once(torch.tensor(True), "wrong: now")
        adjoint.warn_once(True, "wrong: again")
        adjoint.warn_once(True, "worse: now")
        other.warn_once(True, "wrong: elsewhere")

    with pytest.warns(HypergradientWarning) as caught:
        warn()
    told = ["wrong: now", "worse: now", "wrong: elsewhere"]
    assert [str(warning.message) for warning in caught] == [f"Detached(): {line}" for line in told]
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("names", "told"),
    [("a", "a"), ("abcde", "a, b, c, d, e"), ("abcdef", "a, b, c, d, e and 1 more")],
)
def test_five_parameters_that_are_ignored_are_named(names: str, told: str) -> None:
    adjoint = Detached()
    adjoint.warn_unused([])
    with pytest.warns(HypergradientWarning, match=f"ignores the leader's {told}: nothing"):
        adjoint.warn_unused([*names])


@pytest.mark.parametrize("adjoint", [Forward(), Sampled(0.1, samples=16)], ids=repr)
def test_the_batchs_gradient_is_refused_where_it_is_asked_for(adjoint: Adjoint) -> None:
    """Where the batch leads back to θ, and where it is a leaf; not where nobody asks."""
    leader, batch = Decay(), torch.tensor([1.0, -2.0, 0.5], dtype=F64, requires_grad=True)
    solver = Iterative(Gradient(0.3), 30)

    def loss(batch: Tensor) -> Tensor:
        return adjoint.solve(solver, Shrunk(), leader, batch).value.sum()

    refused = r"batch requires gradients: .* take Unrolled\(\)"
    with pytest.raises(BilevelError, match=refused):
        loss(leader.theta.exp() * batch.detach()).backward()
    with pytest.raises(BilevelError, match=refused):
        loss(batch).backward()
    with pytest.raises(BilevelError, match=refused):
        torch.func.grad(loss)(batch.detach())
    (slope,) = torch.autograd.grad(loss(batch), leader.theta)
    assert slope.isfinite()
    game = Bilevel(
        leader,
        Shrunk(),
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=1.0),
        adjoint=adjoint,
    )
    game.step(batch)


@pytest.mark.parametrize("adjoint", PULLBACKS, ids=repr)
def test_a_leader_of_which_a_part_is_frozen(adjoint: Adjoint) -> None:
    batch, slopes = torch.tensor([1.0, -2.0, 0.5], dtype=F64), []
    for frozen in (False, True):
        leader = Decay()
        if frozen:
            leader.more = nn.Parameter(torch.ones(2), requires_grad=False)
        torch.manual_seed(1)
        adjoint.solve(Iterative(Gradient(0.3), 30), Shrunk(), leader, batch).value.sum().backward()
        slopes.append(leader.theta.grad)
    assert slopes[0] != 0
    torch.testing.assert_close(*slopes)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("adjoint", PULLBACKS, ids=repr)
def test_a_follower_that_ignores_the_leader(adjoint: Adjoint) -> None:
    class Deaf(Shrunk):
        def objective(self, leader: Decay, y: Tensor, batch: Tensor) -> Tensor:
            return (y - batch).square().sum() / 2

    leader, solver = Decay(), Iterative(Gradient(0.3), 30)
    adjoint.solve(solver, Deaf(), leader, torch.ones(3, dtype=F64)).value.sum().backward()
    assert leader.theta.grad == 0


@pytest.mark.parametrize("adjoint", [*PULLBACKS, Unrolled(recompute=4)], ids=repr)
def test_a_leader_whose_parameters_are_lent(adjoint: Adjoint) -> None:
    """functional_call takes them back before the backward pass."""

    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leader = Decay()

        def forward(self, batch: Tensor) -> Tensor:
            solver = Iterative(Gradient(0.3), 30)
            return adjoint.solve(solver, Shrunk(), self.leader, batch).value

    answers, batch = Answers(), torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    theta, own = torch.ones((), dtype=F64, requires_grad=True), answers.leader.theta
    torch.nn.init.ones_(own)
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(answers(batch).sum(), own)
    torch.nn.init.zeros_(own)
    lent = torch.func.functional_call(answers, {"leader.theta": theta * 1}, (batch,))
    torch.manual_seed(1)
    slopes = torch.autograd.grad(lent.sum(), [theta, own], allow_unused=True)
    assert slopes[1] is None
    torch.testing.assert_close(slopes[0], expected)


class Elsewhere(Weights):
    """Its loss has lost the answer."""

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return super().loss(y.detach(), batch)


def a_step(leader: Weights, adjoint: Adjoint) -> None:
    game = Bilevel(
        leader,
        Nearest(),
        Iterative(Gradient(0.5), 10),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1) if leader.w.requires_grad else None,
        adjoint=adjoint,
    )
    game.step(Batch(torch.ones(2, 4), torch.zeros(2)))


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
def test_a_loss_that_does_not_read_the_answer_is_told_of(adjoint: Adjoint) -> None:
    with pytest.warns(HypergradientWarning, match=r"loss does not depend on the follower's answer"):
        a_step(Elsewhere(4), adjoint)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        a_step(Weights(4), adjoint)
    assert not any("loss does not depend" in str(warning.message) for warning in told)


def test_nothing_is_said_of_an_answer_that_is_a_constant_or_far_away() -> None:
    a_step(Elsewhere(4), Detached())  # warnings are errors
    a_step(Elsewhere(4).requires_grad_(False), Unrolled())

    class Long(Elsewhere):
        def loss(self, y: Tensor, batch: Batch) -> Tensor:
            loss = super().loss(y, batch)
            for _ in range(10_001):  # the graph is not searched to its end
                loss = loss + 0
            return loss

    a_step(Long(4), Unrolled())
