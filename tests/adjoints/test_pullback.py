"""Adjoints as nodes of the graph: what a backward pass sees, and the transforms of torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from bilevel import (
    BilevelError,
    FollowerProblem,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Penalty,
    Pullback,
)
from bilevel.containers import tensors_in
from bilevel.updates import CNN, Gradient
from tests.problems import image_game
from tests.valleys import (
    F64,
    Boxed,
    Known,
    Numbers,
    Quadratic,
    Valley,
    error,
    exactly,
    hypergradient,
    optimum,
    pulled_back,
    valley,
)


def test_a_trained_solver_gets_its_gradient_as_without_the_adjoint() -> None:
    leader, follower, batch = image_game(dtype=F64)
    solver = Iterative(CNN(1, 0.1, width=4, form="two-layer").double(), 2)
    leader.eval()
    weights = torch.randn(6, 1, 4, 4, dtype=F64)
    plain = solver.solve(follower, leader, batch)
    adjoint = Implicit(max_steps=1)
    ours = adjoint.solve(solver, follower, leader, batch)
    assert torch.equal(plain.value, ours.value)
    slopes = [
        torch.autograd.grad((solution.value * weights).sum(), list(solver.parameters()))
        for solution in (plain, ours)
    ]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)
    assert "residual" not in ours.stats  # nobody asked for the leader's gradient


def test_a_part_of_the_answer_may_be_frozen() -> None:
    solver = Parametric({"a": torch.zeros(1), "b": torch.zeros(2)})
    solver.y["b"].requires_grad_(False)
    value = exactly().solve(solver, Quadratic(), Numbers(3), valley(3, 2.0)).value
    (slope,) = torch.autograd.grad(value["a"].sum(), solver.y["a"])
    assert slope == 1


def test_the_answer_of_parametric_is_differentiated_in_both() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    solver = Parametric(optimum(leader, batch))
    value = exactly().solve(solver, Quadratic(), leader, batch).value
    with torch.no_grad():
        solver.y += 1  # by the backward pass the solver may have moved on
    slopes = torch.autograd.grad(value, [leader.theta, solver.y], v)
    assert error(slopes[0], pulled_back(batch, v)) < 1e-10
    torch.testing.assert_close(slopes[1], v)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("adjoint", [exactly(), Penalty(10.0)], ids=repr)
def test_the_backward_pass_sees_the_leader_of_the_solve(adjoint, mode) -> None:
    """Its running statistics and its mode have moved on by then, and it is left as it is."""

    class Steep(Quadratic):
        def objective(self, leader, y, batch):
            assert leader.training == (mode == "train")
            return leader.v * y @ batch.h @ y / 2 - y @ batch.b @ leader.theta

    class Halfway(Iterative):
        def answer(self, oracle):
            return optimum(leader, batch).detach() / 2

    leader, batch = Numbers(3, torch.tensor(2.0, dtype=F64)).train(), valley(3, 2.0)
    solver = Halfway(Gradient(0.1), 200, leader_mode=mode)
    value = adjoint.solve(solver, Steep(), leader, batch).value
    leader.train(mode == "eval")
    with torch.no_grad():
        leader.v += 5
    v = torch.randn(3, dtype=F64)
    (slope,) = torch.autograd.grad(value, leader.theta, v)
    assert error(slope, pulled_back(batch, v) / 2) < 1e-8
    assert leader.v == 7
    assert leader.training == (mode == "eval")


class Halves(Quadratic):
    """The variable in two parts, whose projection gives them in another order."""

    def init(self, batch):
        return split(super().init(batch))

    def objective(self, leader, y, batch):
        return super().objective(leader, torch.cat([y["a"], y["b"]]), batch)

    def project(self, y, batch):
        return {"b": y["b"].clamp(-50, 50), "a": y["a"].clamp(-50, 50)}


def split(y: Tensor) -> dict[str, Tensor]:
    return {"a": y[:1], "b": y[1:]}


@pytest.mark.parametrize(
    "solver",
    [Iterative(Gradient(0.2), 300), Known(lambda leader, batch: split(optimum(leader, batch)))],
    ids=["in the order of project", "in the order of init"],
)
@pytest.mark.parametrize(
    "adjoint", [exactly(), Penalty(10.0, update=Gradient(0.2), steps=300)], ids=repr
)
def test_the_names_of_a_dict_come_in_any_order(adjoint, solver) -> None:
    leader, batch, v = Numbers(3), valley(3, 5.0), torch.randn(3, dtype=F64)
    solution = adjoint.solve(solver, Halves(), leader, batch)
    outputs = [solution.value["a"], solution.value["b"]]
    (slope,) = torch.autograd.grad(outputs, leader.theta, [v[:1], v[1:]])
    assert error(slope, pulled_back(batch, v)) < 1e-8
    unit = 0.2 if isinstance(solver, Iterative) and isinstance(adjoint, Implicit) else 1
    assert 0.99 * unit < solution.stats["curvature"] < 5.05 * unit


class Answers(nn.Module):
    """The answer as a function of θ and the batch."""

    def __init__(self, leader: LeaderProblem, adjoint: Implicit) -> None:
        super().__init__()
        self.leader, self.adjoint = leader, adjoint

    def forward(self, batch: Valley) -> Tensor:
        solver = Iterative(Gradient(0.15), 300)
        return self.adjoint.solve(solver, Quadratic(), self.leader, batch).value


def test_jacrev_gives_the_jacobian() -> None:
    batch, answers = valley(4, 5.0), Answers(Numbers(3), exactly())

    def answer(theta: Tensor) -> Tensor:
        return functional_call(answers, {"leader.theta": theta}, (batch,))

    theta = torch.randn(3, dtype=F64)
    jacobian = torch.linalg.solve(batch.h, batch.b)
    torch.testing.assert_close(answer(theta), jacobian @ theta)
    torch.testing.assert_close(jacrev(answer)(theta), jacobian)


def test_vmap_solves_for_many_leaders_and_batches() -> None:
    batches, answers = [valley(4, 5.0, seed=i) for i in range(3)], Answers(Numbers(2), exactly())
    batches = [Valley(h, b[:, :2]) for h, b in batches]
    stacked = Valley(*(torch.stack(part) for part in zip(*batches, strict=True)))
    thetas, v = torch.randn(3, 2, dtype=F64), torch.randn(4, dtype=F64)

    def answer(theta: Tensor, batch: Valley) -> Tensor:
        return functional_call(answers, {"leader.theta": theta}, (batch,))

    def slope(theta: Tensor, batch: Valley) -> Tensor:
        return grad(lambda t: v @ answer(t, batch))(theta)

    rows = zip(vmap(answer)(thetas, stacked), vmap(slope)(thetas, stacked), strict=True)
    for (y, ours), theta, batch in zip(rows, thetas, batches, strict=True):
        torch.testing.assert_close(y, torch.linalg.solve(batch.h, batch.b @ theta))
        torch.testing.assert_close(ours, pulled_back(batch, v))
    jacobians = vmap(jacrev(answer))(thetas, stacked)
    torch.testing.assert_close(jacobians, torch.linalg.solve(stacked.h, stacked.b))


def test_several_gradients_of_torchs_older_kind_are_refused() -> None:
    leader, batch = Numbers(3), valley(2, 2.0)
    solution = Implicit().solve(Iterative(Gradient(0.5), 50), Quadratic(), leader, batch)
    units, theta = torch.eye(2, dtype=F64), [*leader.parameters()]
    with pytest.raises(BilevelError, match=r"several gradients in y at once .*jacrev"):
        torch.autograd.grad(solution.value, theta, units, is_grads_batched=True)


def test_a_trained_solver_is_refused_under_vmap() -> None:
    batch, leader = valley(3, 2.0), Numbers(3)
    solver = Parametric(torch.zeros(3, dtype=F64))

    def answer(b: Tensor) -> Tensor:
        return exactly().solve(solver, Quadratic(), leader, Valley(batch.h, b)).value

    stacked = torch.stack([batch.b, 2 * batch.b])
    with pytest.raises(BilevelError, match=r"trained and solved under vmap.*requires_grad_\(False"):
        vmap(answer)(stacked)
    solver.requires_grad_(False)
    assert not vmap(answer)(stacked).any()


def test_second_derivatives_are_refused_in_words() -> None:
    batch, leader = valley(3, 2.0), Numbers(3)
    value = exactly().solve(Known(optimum), Quadratic(), leader, batch).value
    (slope,) = torch.autograd.grad(value.square().sum(), leader.theta, create_graph=True)
    with pytest.raises(BilevelError, match=r"first derivatives only.*take Unrolled\(\)"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("pulled", "told"),
    [
        (None, r"returned None: .* return a dict of \['theta'\]"),
        ([torch.zeros(3)], "returned a list"),
        ({"other": torch.zeros(3)}, r"returned a dict of \['other'\]"),
        ({"theta": torch.zeros(2)}, r"returned shape \(2,\) for theta of shape \(3,\)"),
    ],
    ids=["none", "list", "name", "shape"],
)
def test_what_a_pullback_of_ones_own_returns_is_checked(pulled, told) -> None:
    class Own(Pullback):
        def pull(self, problem, v):
            return pulled

    leader, batch, v = Numbers(3), valley(4, 5.0), torch.ones(4, dtype=F64)
    with pytest.raises(BilevelError, match=rf"Own\.pull {told}"):
        hypergradient(Own(), Iterative(Gradient(0.2), 3), Quadratic(), leader, batch, v)


class Adapted(LeaderProblem):
    """A large network that is frozen, and a few numbers that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.ParameterList([torch.zeros(2**16), torch.zeros(2**16)])
        self.base.requires_grad_(False)
        self.theta = nn.Parameter(torch.ones(3, dtype=F64))

    def loss(self, y: Tensor, batch: object) -> Tensor:
        return y.sum()


class Unboxed(Boxed):
    """Without constraints."""

    project = FollowerProblem.project


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and not func.is_view:
            self.elements = max(self.elements, found.numel())
        return found


@pytest.mark.parametrize("slope", [0.0, 1.0])
@pytest.mark.parametrize("adjoint", [Implicit(), Penalty(10.0)], ids=repr)
def test_a_backward_pass_takes_no_memory_for_what_is_frozen(adjoint, slope) -> None:
    leader, batch = Adapted(), torch.ones(1, 3, dtype=F64)
    solver = Iterative(Gradient(0.5), 50)
    y = adjoint.solve(solver, Unboxed(), leader, batch).value
    with Largest() as largest:
        (slope * y.sum()).backward()
    assert leader.theta.grad is not None
    assert largest.elements < 2**16


def test_the_tensors_of_a_batch() -> None:
    x = torch.ones(1)
    batch = SimpleNamespace(x=x, again=[x], network=nn.Linear(1, 1))
    batch.itself = batch
    (found,) = tensors_in(batch)
    assert found is x
