"""Differentiating through the solve: other libraries' answers, truncated, recomputed, compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from bilevel import (
    BilevelError,
    FollowerProblem,
    Forward,
    HypergradientWarning,
    Iterative,
    LeaderProblem,
    Parametric,
    Unrolled,
    pgm,
    testing,
)
from bilevel.adjoints import unrolled
from bilevel.adjoints.compiled import _compiled_step
from bilevel.recompute import recomputed
from bilevel.solvers import Solver
from bilevel.tree import leaves
from bilevel.updates import (
    CNN,
    MLP,
    CoordinateMLP,
    CoordinateRNN,
    Gradient,
    Momentum,
    NormalizedGradient,
    Optimizer,
    SignGradient,
    Update,
)
from bilevel.updates.optimizer import STEPS
from tests.problems import BatchNormNet, image_game
from tests.valleys import F64, Boxed, Known, Numbers, Quadratic, error, hypergradient, valley

TURNS = 12
NETWORK = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
UPDATES: dict[str, Update] = {
    "gradient": Gradient(0.1),
    "momentum": Momentum(Gradient(0.1), 0.9),
    "adam": Optimizer(torch.optim.Adam, lr=0.05),
}


class Weighted(LeaderProblem):
    """Weights of the training samples, judged on validation samples."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, count, dtype=F64))

    def loss(self, y: dict[str, Tensor], batch: Any) -> Tensor:
        return F.cross_entropy(functional_call(NETWORK, y, batch[2]), batch[3])


class Training(FollowerProblem):
    """A network's weighted training loss."""

    sense = "min"

    def init(self, batch: Any) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in NETWORK.named_parameters()}

    def objective(self, leader: Weighted, y: dict[str, Tensor], batch: Any) -> Tensor:
        outputs = functional_call(NETWORK, y, batch[0])
        losses = F.cross_entropy(outputs, batch[1], reduction="none")
        return (leader.theta.sigmoid() * losses).mean()


def data() -> Any:
    x, t = torch.randn(16, 3, dtype=F64), torch.arange(16) % 3
    return x[:8], t[:8], x[8:], t[8:]


def slope(adjoint, update: Update, batch: Any, *, steps: int = TURNS) -> Tensor:
    leader = Weighted(8)
    value = adjoint.solve(Iterative(update, steps), Training(), leader, batch).value
    (result,) = torch.autograd.grad(leader.loss(value, batch), leader.theta)
    return result


@given(
    size=st.integers(1, 6),
    condition=st.floats(1.0, 1e4),
    steps=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_a_quadratic_follower(size, condition, steps, seed) -> None:
    """y_T = (1 − (1 − ηH)ᵀ) H⁻¹ Bθ for T gradient steps."""
    batch, leader = valley(size, condition, seed=seed), Numbers(3)
    v, step = torch.randn(size, dtype=F64), 1 / condition
    solver = Iterative(Gradient(step), steps)
    rest = torch.linalg.matrix_power(torch.eye(size, dtype=F64) - step * batch.h, steps)
    truth = batch.b.T @ torch.linalg.solve(batch.h, (v - rest @ v))
    for adjoint in (Unrolled(), Unrolled(recompute=True), Unrolled(recompute=3), Forward()):
        found, solution = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
        assert error(found, truth) < 1e-8
        optimum = torch.linalg.solve(batch.h, batch.b @ leader.theta)
        torch.testing.assert_close(solution.value, optimum - rest @ optimum)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["gradient", "adam"])
def test_it_agrees_with_higher(name: str) -> None:
    higher = pytest.importorskip("higher")
    batch, leader, model = data(), Weighted(8), copy.deepcopy(NETWORK)
    # higher has Adam's eps elsewhere than torch: too small to matter here.
    kind, given = {
        "gradient": (torch.optim.SGD, {"lr": 0.1}),
        "adam": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-14}),
    }[name]
    optimizer = kind(model.parameters(), **given)
    with higher.innerloop_ctx(model, optimizer) as (inner, steps):
        for _ in range(TURNS):
            losses = F.cross_entropy(inner(batch[0]), batch[1], reduction="none")
            steps.step((leader.theta.sigmoid() * losses).mean())
        (theirs,) = torch.autograd.grad(F.cross_entropy(inner(batch[2]), batch[3]), leader.theta)
    assert error(slope(Unrolled(), Optimizer(kind, **given), batch), theirs) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_it_agrees_with_torchopt() -> None:
    torchopt = pytest.importorskip("torchopt")
    batch, leader, model = data(), Weighted(8), copy.deepcopy(NETWORK)
    optimizer = torchopt.MetaSGD(model, lr=0.1)
    for _ in range(TURNS):
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        optimizer.step((leader.theta.sigmoid() * losses).mean())
    (theirs,) = torch.autograd.grad(F.cross_entropy(model(batch[2]), batch[3]), leader.theta)
    assert error(slope(Unrolled(), UPDATES["gradient"], batch), theirs) < 1e-6


@pytest.mark.parametrize("name", UPDATES)
def test_recomputed_and_forward_derivatives_are_the_same(name: str) -> None:
    batch, update = data(), UPDATES[name]
    plain = slope(Unrolled(), update, batch)
    for recompute in (True, 1, 5, 100):
        assert error(slope(Unrolled(recompute=recompute), update, batch), plain) < 1e-12
    assert error(slope(Forward(), update, batch), plain) < 1e-12


@pytest.mark.parametrize(("recompute", "segments"), [(True, 16), (1, 64), (10, 7), (100, 1)])
def test_the_number_of_segments(monkeypatch, recompute, segments) -> None:
    """True makes them half as long as the root of the number of steps."""
    made = []
    counted = lambda *given: made.append(given) or recomputed(*given)  # noqa: E731
    monkeypatch.setattr(unrolled, "recomputed", counted)
    solver = Iterative(Gradient(0.1), 64)
    Unrolled(recompute=recompute).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))
    assert len(made) == segments


def test_truncation_drops_what_comes_before() -> None:
    """On ½h(y − θ)² the last k of the steps give 1 − (1 − ηh)ᵏ, whatever came before."""
    batch, leader = valley(1, 1.0, numbers=1), Numbers(1)
    v = torch.ones(1, dtype=F64)
    for kept in (1, 4, 10, 50):
        found, solution = hypergradient(
            Unrolled(truncate=kept, recompute=3), Iterative(Gradient(0.2), 10), Quadratic(),
            leader, batch, v,
        )  # fmt: skip
        assert error(found, (1 - 0.8 ** min(kept, 10)) * batch.b[0]) < 1e-12
        assert solution.stats["evaluations"] == 10
        answer = (1 - 0.8**10) * batch.b @ leader.theta
        torch.testing.assert_close(solution.value, answer)


def test_what_is_recomputed_is_computed_as_it_was() -> None:
    """Dropout and statistics that the leader's own pass moves, between solve and backward."""

    class Noisy(LeaderProblem):
        def __init__(self):
            super().__init__()
            self.model = BatchNormNet(dropout=0.5).double()

        def loss(self, y, batch):
            return (self.model(batch.x + y) ** 2).sum()

    _, follower, batch = image_game(dtype=F64)
    slopes = []
    for recompute in (False, 2):
        for mode in ("eval", "train"):
            torch.manual_seed(2)
            leader = Noisy().train()
            solver = Iterative(Gradient(0.5), 4, leader_mode=mode)
            solution = Unrolled(recompute=recompute).solve(solver, follower, leader, batch)
            torch.rand(7)
            leader.eval() if mode == "train" else leader.model(100 * batch.x)
            slopes.append(torch.autograd.grad(solution.value.sum(), list(leader.parameters())))
    for i in (0, 1):
        for plain, again in zip(slopes[i], slopes[2 + i], strict=True):
            torch.testing.assert_close(plain, again)
    assert not torch.equal(slopes[0][0], slopes[1][0])


@pytest.mark.parametrize("recompute", [False, 1])
def test_phi_is_trained_through_the_gradients(recompute) -> None:
    """Two learned steps written by hand, with second derivatives."""
    leader, follower, batch = image_game(dtype=F64)
    leader.eval()
    update = CNN(1, 0.1, width=4, form="two-layer").double()
    players = [*leader.parameters(), *update.parameters()]
    weights = torch.randn(6, 1, 4, 4, dtype=F64)
    twin = copy.deepcopy(update)
    value = Unrolled(recompute=recompute).solve(Iterative(update, 2), follower, leader, batch).value
    ours = torch.autograd.grad((value * weights).sum(), players)

    delta = torch.zeros_like(batch.x).requires_grad_()
    for _ in range(2):
        loss = follower.objective(leader, delta, batch).sum()
        (gradient,) = torch.autograd.grad(loss, delta, create_graph=True)
        delta, _ = twin(delta, gradient, batch.x + delta, None)
        delta = (batch.x + delta.clamp(-0.1, 0.1)).clamp(0, 1) - batch.x
    by_hand = torch.autograd.grad(
        (delta * weights).sum(), [*leader.parameters(), *twin.parameters()]
    )
    for mine, theirs in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert ours[0].any()


def test_a_box_stops_the_derivative() -> None:
    leader, batch = Numbers(4), 2 * torch.randn(5, 4, dtype=F64)
    inside, v = (leader.theta * batch).abs() < 1, torch.randn(5, 4, dtype=F64)
    solver = Iterative(Gradient(0.4), 200)
    for adjoint in (Unrolled(), Unrolled(recompute=True), Forward()):
        found, _ = hypergradient(adjoint, solver, Boxed(), leader, batch, v)
        assert error(found, (inside * batch * v).sum(0)) < 1e-10


def test_any_solver_that_asks_a_differentiable_oracle() -> None:
    class TwoSteps(Solver):
        def answer(self, oracle):
            y = oracle.init()
            for _ in range(2):
                y = y + 0.1 * oracle.gradient(y)
            return y

    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    found, _ = hypergradient(Unrolled(), TwoSteps(), Quadratic(), leader, batch, v)
    like, _ = hypergradient(Unrolled(), Iterative(Gradient(0.1), 2), Quadratic(), leader, batch, v)
    torch.testing.assert_close(found, like)
    with pytest.raises(BilevelError, match=r"cannot cut TwoSteps into steps.*Unrolled\(\) without"):
        Unrolled(truncate=1).solve(TwoSteps(), Quadratic(), leader, batch)


@pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(recompute=True), Unrolled(truncate=1)])
def test_the_leader_is_left_as_it_was(adjoint) -> None:
    class Through(Solver):
        """Solves as the adjoint does."""

        def __init__(self):
            super().__init__()
            self.inner = Iterative(Gradient(0.1), 3, warm_start=True, leader_mode="train")

        def solve(self, follower, leader, batch, *, evaluate=True):
            return adjoint.solve(self.inner, follower, leader, batch)

        def answer(self, oracle):
            raise NotImplementedError

    leader, follower, batch = image_game()
    leader.train()
    leader.loss(torch.zeros_like(batch.x), batch).backward()
    testing.check_solver(Through(), follower, leader, batch)


@pytest.fixture
def compiled(monkeypatch) -> Iterator[Unrolled]:
    """Traced and differentiated as by the default backend, which takes its time to make code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _compiled_step.cache_clear()
    yield Unrolled(compile=True)
    _compiled_step.cache_clear()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "update",
    [
        Gradient(0.1),
        Optimizer(torch.optim.SGD, lr=0.1, momentum=0.5),
        *(Optimizer(kind, lr=0.1) for kind in STEPS),
    ],
    ids=repr,
)
def test_compiled_steps_are_the_same(compiled, update) -> None:
    leader, batch, v = Numbers(4), 2 * torch.randn(5, 4, dtype=F64), torch.randn(5, 4, dtype=F64)
    found, like = (
        hypergradient(adjoint, Iterative(update, 10), Boxed(), leader, batch, v)
        for adjoint in (compiled, Unrolled())
    )
    assert error(found[0], like[0]) < 1e-10
    assert found[1].stats.keys() == like[1].stats.keys()
    for name, stat in like[1].stats.items():
        torch.testing.assert_close(found[1].stats[name], stat)


@pytest.mark.filterwarnings("ignore")
@torch._dynamo.config.patch(cache_size_limit=2)
def test_more_settings_are_compiled_than_torch_keeps(compiled) -> None:
    batch = torch.ones(1, 2, dtype=F64)
    for lr in (0.1, 0.2, 0.3, 0.4):
        solver = Iterative(Gradient(lr), 1)
        y, like = (
            a.solve(solver, Boxed(), Numbers(2), batch).value for a in (compiled, Unrolled())
        )
        assert torch.equal(y, like)


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_cannot_be_compiled(compiled) -> None:
    class Halving(Update):
        def forward(self, y, gradient, context, state):
            return (y / 2 if y.norm() > 1 else y + gradient), state

    solver = Iterative(Halving(), 2)
    with pytest.raises(BilevelError, match=r"Halving cannot be compiled \(.*leave out compile"):
        compiled.solve(solver, Boxed(), Numbers(4), torch.randn(5, 4, dtype=F64))


class Started(Quadratic):
    """Its start is computed from θ."""

    def __init__(self, leader: Numbers) -> None:
        super().__init__()
        self.leader = leader

    def init(self, batch: Any) -> Tensor:
        return batch.b @ self.leader.theta.sin()


@pytest.mark.parametrize(
    "adjoint",
    [
        Unrolled(recompute=True),
        Unrolled(recompute=2),
        Unrolled(truncate=TURNS),
        Unrolled(truncate=TURNS + 1, recompute=True),
        Forward(),
    ],
    ids=str,
)
def test_a_start_that_depends_on_the_leader(adjoint) -> None:
    """dy_0/dθ is a part of the gradient, unless the first steps are cut off."""
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    given = Iterative(Gradient(0.1), TURNS), Started(leader), leader, batch, v
    found, like = (hypergradient(one, *given)[0] for one in (adjoint, Unrolled()))
    assert error(found, like) < 1e-10
    cut, whole = (hypergradient(Unrolled(truncate=k), *given)[0] for k in (TURNS - 1, TURNS))
    assert error(cut, whole) > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss])
def test_a_loss_without_forward_derivative(loss) -> None:
    class Fitting(Quadratic):
        def objective(self, leader: Numbers, y: Tensor, batch: Any) -> Tensor:
            return loss(y, batch.b @ leader.theta)

    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    with pytest.raises(BilevelError, match=r"forward derivative.*take Unrolled\(recompute=True\)"):
        hypergradient(Forward(), Iterative(Gradient(0.1), 2), Fitting(), leader, batch, v)


def test_recomputed_steps_refuse_a_batch_with_a_graph() -> None:
    batch, leader = valley(4, 5.0), Numbers(3)
    computed = batch._replace(b=batch.b * leader.theta)
    solver = Iterative(Gradient(0.1), 4)
    Unrolled().solve(solver, Quadratic(), leader, computed).value.sum().backward()
    with pytest.raises(BilevelError, match="the batch requires gradients: Unrolled"):
        Unrolled(recompute=True).solve(solver, Quadratic(), leader, computed)


class Hinge(FollowerProblem):
    """max over y of Σ relu(y Σθ − 1), whose gradient is exactly 0 at the start."""

    sense = "max"

    def __init__(self, shared: bool) -> None:
        self.shared = shared

    def init(self, batch: None) -> Any:
        y = torch.zeros(2, 2, dtype=F64)
        return {"y": y} if self.shared else y

    def objective(self, leader: Numbers, y: Any, batch: None) -> Tensor:
        rest = (y["y"] if self.shared else y) * leader.theta.sum() - 1
        return rest.relu().sum() if self.shared else rest.relu().sum(1)


AT_REST = [
    NormalizedGradient(0.1),
    Momentum(Gradient(0.1), 0.9, normalize=True),
    CoordinateMLP(gradient_skip=0.1).double(),
    CoordinateRNN(0.1, gradient_skip=0.1).double(),
    MLP(4, gradient_skip=0.1).double(),
    *(Optimizer(kind, lr=0.1) for kind in STEPS),
    Optimizer(torch.optim.RMSprop, lr=0.1, centered=True, momentum=0.5),
    Optimizer(torch.optim.Adam, lr=0.1, amsgrad=True),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("update", AT_REST, ids=repr)
def test_a_gradient_of_zero_has_finite_derivatives(update, shared) -> None:
    leader = Numbers(3)
    players = [leader.theta, *update.parameters()]
    for part in update.parameters():  # a last layer that starts at zero would hide it
        torch.nn.init.normal_(part)
    value = Unrolled().solve(Iterative(update, 3), Hinge(shared), leader, None).value
    loss = leader.theta.sum() + sum((leaf - 1).square().sum() for leaf in leaves(value))
    slopes = torch.autograd.grad(loss, players, allow_unused=True)
    assert all(slope.isfinite().all() for slope in slopes if slope is not None)


def test_a_parameter_that_is_not_contiguous() -> None:
    class Turned(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.arange(6.0, dtype=F64).view(2, 3).T)

        def loss(self, y, batch):
            raise NotImplementedError

    class Product(Quadratic):
        def objective(self, leader, y, batch):
            return y.square().sum() / 2 - y @ leader.matrix @ batch

        def init(self, batch):
            return torch.zeros(3, dtype=F64)

    leader, batch, v = Turned(), torch.randn(2, dtype=F64), torch.randn(3, dtype=F64)
    for adjoint in (Forward(), Unrolled()):
        value = adjoint.solve(Iterative(Gradient(0.5), 60), Product(), leader, batch).value
        (slope,) = torch.autograd.grad(value, leader.matrix, v)
        torch.testing.assert_close(slope, torch.outer(v, batch))


# Bad input.


@pytest.mark.parametrize("kind", [Unrolled, Forward])
@pytest.mark.parametrize("update", [SignGradient(0.1), Momentum(SignGradient(0.1), 0.9)])
def test_a_step_that_jumps(kind, update) -> None:
    leader, follower, batch = image_game()
    with pytest.raises(BilevelError, match=r"in jumps.*take updates\.Gradient.*Implicit\(\)"):
        kind().solve(Iterative(update, 2), follower, leader, batch)
    with pytest.raises(BilevelError, match="in jumps"):
        kind().solve(pgm(0.1, 2), follower, leader, batch)


@pytest.mark.parametrize("adjoint", [Unrolled(), Forward()])
def test_an_answer_that_is_not_computed_from_theta(adjoint) -> None:
    with pytest.raises(BilevelError, match=r"moved by an optimizer.*take Implicit\(\)"):
        adjoint.solve(Parametric(torch.zeros(3)), Quadratic(), Numbers(3), valley(3, 2.0))


@pytest.mark.parametrize("settings", [{"truncate": 0}, {"truncate": 2.5}, {"recompute": -1}])
def test_no_number_of_steps(settings) -> None:
    with pytest.raises(BilevelError, match=r"is a number of steps; give 1, 2"):
        Unrolled(**settings)


def test_forward_mode_for_many_numbers_or_a_solver_with_a_memory() -> None:
    solver = Iterative(Gradient(0.1), 2, warm_start=True)
    with pytest.raises(BilevelError, match=r"would solve 3 times.*take Unrolled\(recompute=True\)"):
        Forward(limit=2).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))
    with pytest.raises(BilevelError, match="give it warm_start=False"):
        Forward().solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))


def test_a_solver_that_ignores_the_leader() -> None:
    solver = Known(lambda leader, batch: batch.b[:, 0])
    with pytest.warns(HypergradientWarning, match="ignores the leader's theta"):
        value = Unrolled().solve(solver, Quadratic(), Numbers(3), valley(3, 2.0)).value
    assert not leaves(value)[0].requires_grad
