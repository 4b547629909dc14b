"""docs/algorithms.md: the rows of its tables take steps, its examples are what they are called."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel import games
from bilevel.robustness import Batch
from tests.docs.algorithms import NAMES, PAGE
from tests.recipes import example, follow

SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def rows(section: str, *default: str) -> list[Any]:
    """The cells of code of each row of the section's table, by the algorithm's name.

    What else a row takes, by its name, follows, or else the default.
    """
    lines = re.findall(r"^\| (.*?) \| (.*) \|$", SECTIONS[section], re.M)
    cells = [
        (name, re.findall(r"`(.*?)`", rest), re.findall(r"with `(.*?)`", name) or default)
        for name, rest in lines
    ]
    return [
        pytest.param(*code, *more, id=name.split(" (")[0]) for name, code, more in cells if code
    ]


class Penalised(bilevel.FollowerProblem):
    """min over y of ½‖y − x‖² + ½ θ ‖y‖², attained at x / (1 + θ)."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(len(batch))

    def objective(self, leader: bilevel.LeaderProblem, y: Tensor, batch: Tensor) -> Tensor:
        return ((y - batch).square().sum() + leader.theta * y.square().sum()) / 2


class Quarter(bilevel.LeaderProblem):
    """Wants y to be x / 4, so that θ is 3."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return (y - batch / 4).square().sum() + 0 * self.theta


@pytest.mark.parametrize(
    ("solver", "adjoint", "schedule"), rows("Hypergradients", "Simultaneous()")
)
def test_hypergradients_find_the_penalty(
    solver: str, adjoint: str, schedule: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    leader = Quarter()
    names = NAMES | {"y": torch.zeros(2)}
    if adjoint.startswith("Nystrom"):
        page = follow(example(tmp_path), "Everything in a single loop")
        names |= follow(page, "Some columns of the Hessian: Nyström")
    answers = eval(solver, names)
    phi = list(answers.parameters())
    game = bilevel.Bilevel(
        leader,
        Penalised(),
        answers,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.2),
        solver_opt=torch.optim.SGD(phi, lr=0.1) if phi else None,
        adjoint=eval(adjoint, names),
        schedule=eval(schedule, names),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bilevel.HypergradientWarning)
        for _ in range(10):
            game.step(torch.tensor([1.0, 2.0]))
    assert leader.theta > 0 or adjoint == "Detached()"


@pytest.mark.parametrize(("solver", "schedule"), rows("Min-max games"))
def test_min_max_games_move_both_players(solver: str, schedule: str) -> None:
    game = games.begin(games.bilinear(), 1.0, 0.5, lr=0.1)
    y = torch.tensor([0.5], dtype=torch.float64)
    answers = eval(solver, {**NAMES, "y": y}).double()
    phi = list(answers.parameters())
    game = bilevel.Bilevel(
        game.leader,
        game.follower,
        answers,
        leader_opt=game.leader_opt,
        solver_opt=torch.optim.SGD(phi, lr=0.1) if phi else None,
        schedule=eval(schedule, NAMES),
    )
    before = flat(game.leader, answers)
    for _ in range(2):
        game.step(None)
    after = flat(game.leader, answers)
    assert after.isfinite().all()
    assert (after != before).all() or len(phi) > 1


@pytest.mark.parametrize(("follower", "solver"), rows("Adversarial training"))
def test_adversarial_training_takes_a_step(follower: str, solver: str) -> None:
    torch.manual_seed(0)
    threat, attacker, classifier = eval(follower, NAMES), eval(solver, NAMES), model(3 * 64)
    phi = list(attacker.parameters())
    game = bilevel.Bilevel(
        bilevel.ZeroSum(classifier, threat),
        threat,
        attacker,
        leader_opt=torch.optim.SGD(classifier.parameters(), lr=0.1),
        solver_opt=torch.optim.Adam(phi, lr=1e-3) if phi else None,
    )
    before = flat(classifier, attacker)
    batch = Batch(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert (game.solve(batch).value != 0).any()
    game.step(batch)
    assert not torch.equal(flat(classifier), before[: len(flat(classifier))])


def flat(*modules: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def model(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 4))


def examples() -> tuple[nn.Module, Batch, list[dict[str, Any]]]:
    """The classifier before training, a batch, and the names of each example."""
    torch.manual_seed(0)
    classifier = model(3 * 16).double()
    batch = Batch(torch.rand(16, 3, 4, 4, dtype=torch.float64), torch.arange(16) % 4)
    found = []
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        names = {"bilevel": bilevel, "torch": torch, "F": F}
        names["model"] = copy.deepcopy(classifier)
        exec(code, names)
        found.append(names)
    return classifier, batch, found


def test_trades_by_hand() -> None:
    by_hand, (x, labels), (names, _) = examples()
    x = (1.2 * x - 0.1).clamp(0, 1)  # some pixels are black, some white
    torch.manual_seed(1)
    names["trades"].step(Batch(x, labels))
    torch.manual_seed(1)
    clean, moved = by_hand(x).softmax(1).detach(), (x + 0.001 * torch.randn_like(x)).clamp(0, 1)
    for _ in range(10):
        moved.requires_grad_()
        divergence = F.kl_div(by_hand(moved).log_softmax(1), clean, reduction="sum")
        moved = moved.detach() + 0.007 * torch.autograd.grad(divergence, moved)[0].sign()
        moved = moved.clamp(x - 0.031, x + 0.031).clamp(0, 1)
    robust = F.kl_div(by_hand(moved).log_softmax(1), by_hand(x).softmax(1), reduction="batchmean")
    (F.cross_entropy(by_hand(x), labels) + 6.0 * robust).backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.1).step()
    torch.testing.assert_close(flat(names["model"]), flat(by_hand))


def test_sharpness_aware_minimisation_by_hand() -> None:
    by_hand, (x, labels), (_, names) = examples()
    names["sam"].step(Batch(x, labels))
    at_theta, optimizer = copy.deepcopy(by_hand), torch.optim.SGD(by_hand.parameters(), lr=0.1)
    F.cross_entropy(at_theta(x), labels).backward()
    length = torch.nn.utils.get_total_norm([p.grad for p in at_theta.parameters()])
    moved = copy.deepcopy(at_theta)
    with torch.no_grad():
        for there, p in zip(moved.parameters(), at_theta.parameters(), strict=True):
            there += 0.05 * p.grad / length
    moved.zero_grad()
    F.cross_entropy(moved(x), labels).backward()
    for p, there in zip(by_hand.parameters(), moved.parameters(), strict=True):
        p.grad = there.grad
    optimizer.step()
    torch.testing.assert_close(flat(names["model"]), flat(by_hand))


def test_the_optimistic_problem_by_a_penalty_on_the_value() -> None:
    """(x − 1)² + (y₁ − 2)² + y₂² where y₁ + y₂ = x, which any such y solves: least at x = 4/3."""

    class Sum(bilevel.FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.zeros(2)

        def objective(self, leader, z, batch):
            return (z.sum() - leader.x).square()

    class Both(bilevel.LeaderProblem):
        def __init__(self, follower) -> None:
            super().__init__()
            self.x, self.y = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))
            self.excess = lambda z: follower.objective(self, z, None)

        def loss(self, z, batch):
            own = (self.x - 1) ** 2 + (self.y[0] - 2) ** 2 + self.y[1] ** 2
            return own + 100 * (self.excess(self.y) - self.excess(z))

    leader, solver = Both(Sum()), bilevel.Iterative(bilevel.updates.Gradient(0.2), 10)
    optimizer = torch.optim.SGD(leader.parameters(), lr=3e-3)
    game = bilevel.Bilevel(leader, Sum(), solver, leader_opt=optimizer, adjoint=bilevel.Detached())
    for _ in range(1000):
        game.step(None)
    found = torch.cat([leader.x.detach()[None], leader.y.detach()])
    torch.testing.assert_close(found, torch.tensor([4, 5, -1]) / 3, rtol=0, atol=0.01)


def test_multipliers_of_the_leader_ascend() -> None:
    """Min x² with x ≥ 1, whose multiplier is 2; the follower gives y = x."""

    class Floor(bilevel.LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.w = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

        def loss(self, y, batch):
            return y * self.x + (2 * self.w.detach() - self.w) * (1 - y)

        def project(self) -> None:
            self.w.clamp_(min=0)

    class Copy(bilevel.FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.zeros(())

        def objective(self, leader, y, batch):
            return (y - leader.x).square()

    leader, solver = Floor(), bilevel.Iterative(bilevel.updates.Gradient(0.5), 1)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = bilevel.Bilevel(leader, Copy(), solver, leader_opt=optimizer, adjoint=bilevel.Unrolled())
    with pytest.warns(bilevel.HypergradientWarning, match="ignores the leader's w"):
        game.step(None)
    for _ in range(200):
        game.step(None)
    assert leader.x.item() == pytest.approx(1, abs=1e-3)
    assert leader.w.item() == pytest.approx(2, abs=1e-3)
