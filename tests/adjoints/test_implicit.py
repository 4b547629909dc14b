"""The implicit adjoint: closed forms, what it says where it does not hold, and transforms."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from bilevel import (
    BilevelError,
    FollowerProblem,
    HypergradientWarning,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Penalty,
    Unrolled,
    pgm,
)
from bilevel.updates import CNN, Gradient, Momentum, Optimizer, SignGradient
from tests.problems import image_game
from tests.valleys import (
    F64,
    Boxed,
    Known,
    Numbers,
    Quadratic,
    Valley,
    error,
    hypergradient,
    optimum,
    valley,
)

exactly = partial(Implicit, tolerance=1e-13, max_steps=500)


def truth(batch: Valley, v: Tensor) -> Tensor:
    return batch.b.T @ torch.linalg.solve(batch.h, v)


@given(
    method=st.sampled_from([None, "cg", "gmres", "exact"]),
    sense=st.sampled_from(["min", "max"]),
    size=st.integers(1, 10),
    condition=st.floats(1.0, 1e4),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_a_quadratic_follower(method, sense, size, condition, seed) -> None:
    batch, leader = valley(size, condition, seed=seed), Numbers(3)
    v = torch.randn(size, dtype=F64)
    slope, solution = hypergradient(
        exactly(method), Known(optimum), Quadratic(sense), leader, batch, v
    )
    assert error(slope, truth(batch, v)) < 1e-8
    assert solution.stats["residual"] < 1e-8
    assert 0.99 < solution.stats["curvature"] < 1.01 * condition
    assert solution.stats["gradient_norm"] < 1e-9 * condition


def test_fewer_steps_than_dimensions_keep_to_the_bound() -> None:
    """With v = Bθ' the error in θ'ᵀ(dy*/dθ)ᵀv is CG's in the norm of H, squared (Galerkin)."""
    batch, leader = valley(50, 100.0, numbers=1), Numbers(1)
    v, exact = batch.b[:, 0], truth(batch, batch.b[:, 0])
    for steps in (5, 10, 20):
        with pytest.warns(HypergradientWarning, match="linear system not solved: its residual"):
            slope, solution = hypergradient(
                Implicit(max_steps=steps), Known(optimum), Quadratic(), leader, batch, v
            )
        assert error(slope, exact) <= 4 * (9 / 11) ** (2 * steps)
        assert solution.stats["evaluations"] == steps + 2  # the gradients at answer and start


def test_the_series_of_a_contracting_step() -> None:
    batch, leader, v = valley(6, 10.0), Numbers(3), torch.randn(6, dtype=F64)
    solver = Iterative(Gradient(0.1), 400)
    for adjoint in (
        Implicit("neumann", max_steps=500, tolerance=1e-12),
        Implicit("neumann", max_steps=500, tolerance=1e-12, fixed_point=Gradient(0.15)),
        Implicit(fixed_point=Gradient(0.5), tolerance=1e-12),
    ):
        slope, _ = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
        assert error(slope, truth(batch, v)) < 1e-8


def test_ridge_regression() -> None:
    """y* = (XᵀX + λI)⁻¹Xᵀt, dy*/dλ = −(XᵀX + λI)⁻¹ y*, with λ = exp θ."""

    class Ridge(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return {"w": torch.zeros(4, dtype=F64), "b": torch.zeros(1, dtype=F64)}

        def objective(self, leader, y, batch):
            x, t = batch
            rest = x @ y["w"] + y["b"] - t
            penalty = y["w"].square().sum() + y["b"].square().sum()
            return (rest.square().sum() + leader.theta.exp().sum() * penalty) / 2

    x, t = torch.randn(20, 4, dtype=F64), torch.randn(20, dtype=F64)
    design = torch.cat([x, torch.ones(20, 1, dtype=F64)], 1)

    def answer(leader, batch):
        y = torch.linalg.solve(design.T @ design + leader.theta.exp() * torch.eye(5), design.T @ t)
        return {"w": y[:4], "b": y[4:]}

    leader, v = Numbers(1), torch.randn(5, dtype=F64)
    y = torch.cat(list(answer(leader, None).values())).detach()
    scale = leader.theta.detach().exp()
    expected = -scale * v @ torch.linalg.solve(design.T @ design + scale * torch.eye(5), y)
    slope, _ = hypergradient(
        exactly(), Known(answer), Ridge(), leader, (x, t), {"w": v[:4], "b": v[4:]}
    )
    assert error(slope, expected) < 1e-10


@pytest.mark.parametrize("method", [None, "gmres", "exact"])
@pytest.mark.parametrize("update", [Gradient(0.4), SignGradient(1e-3)])
def test_a_box_stops_the_derivative(method, update) -> None:
    leader, batch = Numbers(4), 2 * torch.randn(5, 4, dtype=F64)
    inside = (leader.theta * batch).abs() < 1
    assert inside.any()
    assert not inside.all()
    solver = Iterative(update, 100)
    if isinstance(update, SignGradient):
        solver = Known(lambda leader, batch: (leader.theta * batch).clamp(-1, 1))
    v = torch.randn(5, 4, dtype=F64)
    slope, _ = hypergradient(exactly(method), solver, Boxed(), leader, batch, v)
    assert error(slope, (inside * batch * v).sum(0)) < 1e-10


def test_a_scalar() -> None:
    """Min over y of ¼y⁴ − θy: y* = θ^⅓, dy*/dθ = ⅓ θ^−⅔."""

    class Root(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.ones((), dtype=F64)

        def objective(self, leader, y, batch):
            return y**4 / 4 - leader.theta.sum() * y

    leader = Numbers(1)
    solver = Known(lambda leader, _: leader.theta.sum() ** (1 / 3))
    v = torch.tensor(2.0, dtype=F64)
    for method in (None, "gmres", "exact"):
        slope, _ = hypergradient(Implicit(method), solver, Root(), leader, None, v)
        assert error(slope, 2 / 3 * leader.theta.detach() ** (-2 / 3)) < 1e-12


def test_damping_is_added_to_the_diagonal() -> None:
    batch, leader, v = valley(5, 10.0), Numbers(3), torch.randn(5, dtype=F64)
    slope, _ = hypergradient(exactly(damping=2.0), Known(optimum), Quadratic(), leader, batch, v)
    damped = Valley(batch.h + 2 * torch.eye(5), batch.b)
    assert error(slope, truth(damped, v)) < 1e-10


def test_a_warm_start_spends_fewer_products_and_is_remembered() -> None:
    batch, leader, v = valley(20, 1e3), Numbers(3), torch.randn(20, dtype=F64)
    adjoint, resumed = (Implicit(warm_start=True, tolerance=1e-9) for _ in range(2))
    spent = []
    for use in (adjoint, adjoint, resumed):
        if use is resumed:
            resumed.load_state_dict(adjoint.state_dict())
        _, solution = hypergradient(use, Known(optimum), Quadratic(), leader, batch, v)
        spent.append(int(solution.stats["evaluations"]))
    assert spent[0] > 20
    assert spent[1] == spent[2] == 2  # the gradient, and the product that finds it solved


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
    slopes = torch.autograd.grad(value, [leader.theta, solver.y], v)
    assert error(slopes[0], truth(batch, v)) < 1e-10
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
    assert error(slope, truth(batch, v) / 2) < 1e-8
    assert leader.v == 7
    assert leader.training == (mode == "eval")


# Transforms.


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
        torch.testing.assert_close(ours, truth(batch, v))
    jacobians = vmap(jacrev(answer))(thetas, stacked)
    torch.testing.assert_close(jacobians, torch.linalg.solve(stacked.h, stacked.b))


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


# What should not be trusted.


def warned(adjoint: Implicit, solver, batch: Valley, match: str) -> Tensor:
    leader, v = Numbers(batch.b.shape[1]), torch.ones(len(batch.h), dtype=F64)
    with pytest.warns(HypergradientWarning, match=match) as caught:
        hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
    assert len(caught) == 1, [str(warning.message) for warning in caught]
    _, solution = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)  # said once
    return solution.stats["curvature"]


def test_an_answer_that_is_not_stationary() -> None:
    warned(
        Implicit(), Iterative(Gradient(0.01), 3), valley(3, 5.0),
        r"not stationary at its answer: .* is 0\.\d+ of that at .* more steps, or take Unrolled",
    )  # fmt: skip


def test_a_start_at_the_optimum_is_nothing_to_compare_with() -> None:
    """A later one, of another leader, is: what is missed is never a multiple of rounding."""

    class Near(Quadratic):
        def init(self, batch):
            return torch.linalg.solve(batch.h, batch.b @ torch.linspace(0.5, 1.5, 3, dtype=F64))

    leader, batch, v = Numbers(3), valley(4, 5.0), torch.randn(4, dtype=F64)
    adjoint, solver = Implicit(), Iterative(Gradient(0.01), 1)
    for _ in range(2):
        hypergradient(adjoint, solver, Near(), leader, batch, v)
    leader.theta.data += 1
    with pytest.warns(HypergradientWarning, match=r"not stationary .* is [01]\.?\d* of that at"):
        hypergradient(adjoint, solver, Near(), leader, batch, v)


@pytest.mark.parametrize("method", ["cg", "gmres", "exact"])
def test_negative_curvature(method) -> None:
    h = torch.diag(torch.tensor([1.0, 2.0, -0.5], dtype=F64))
    batch = Valley(h, torch.eye(3, dtype=F64))
    curvature = warned(
        Implicit(method), Known(optimum), batch, r"negative curvature: .* give damping above 0\.\d"
    )
    assert curvature < 0
    assert curvature == pytest.approx(-0.5) or method != "exact"


@pytest.mark.parametrize("method", ["cg", "exact"])
def test_a_singular_system(method) -> None:
    h = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))
    solver = Known(lambda leader, batch: torch.stack([leader.theta.sum(), torch.tensor(0.0)]))
    batch = Valley(h, torch.tensor([[1.0], [0.0]], dtype=F64))
    warned(Implicit(method), solver, batch, r"singular system: .* is flat .* or give damping")


def test_a_flat_direction_that_the_leader_does_not_see_is_no_concern() -> None:
    batch = Valley(torch.diag(torch.tensor([2.0, 0.0], dtype=F64)), torch.ones(2, 1, dtype=F64))
    solver = Known(lambda leader, batch: torch.stack([leader.theta.sum() / 2, torch.tensor(0.0)]))
    v = torch.tensor([1.0, 0.0], dtype=F64)

    class Flat(Quadratic):
        def objective(self, leader, y, batch):
            return y @ batch.h @ y / 2 - y[0] * leader.theta.sum()

    for method in ("cg", "exact"):
        slope, _ = hypergradient(Implicit(method), solver, Flat(), Numbers(1), batch, v)
        torch.testing.assert_close(slope, torch.tensor([0.5], dtype=F64))


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_an_objective_without_any_curvature_is_no_crash() -> None:
    class Slope(Quadratic):
        def objective(self, leader, y, batch):
            return y.sum()

    v = torch.ones(3, dtype=F64)
    given = Known(optimum), Slope(), Numbers(3), valley(3, 2.0), v
    with pytest.warns(HypergradientWarning, match="singular system"):
        slope, _ = hypergradient(Implicit(), *given)
    assert not slope.any()


def test_a_series_that_diverges() -> None:
    warned(
        Implicit("neumann", fixed_point=Gradient(3.0), max_steps=10), Known(optimum),
        valley(3, 5.0), "linear system not solved: its residual is .* after 10 products",
    )  # fmt: skip


@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled()])
def test_a_parameter_on_which_the_follower_does_not_depend(adjoint) -> None:
    class Two(Numbers):
        def __init__(self):
            super().__init__(3)
            self.head = nn.Parameter(torch.ones(2, dtype=F64))

        def loss(self, y, batch):
            return y.sum() + self.head.square().sum()

    leader, batch, solver = Two(), valley(3, 2.0), Iterative(Gradient(0.3), 100)

    def backward() -> None:
        leader.zero_grad()
        leader.loss(adjoint.solve(solver, Quadratic(), leader, batch).value, batch).backward()

    with pytest.warns(HypergradientWarning, match=r"ignores the leader's head:.*is 0"):
        backward()
    backward()  # said once
    assert leader.head.grad.tolist() == [2, 2]
    assert error(leader.theta.grad, truth(batch, torch.ones(3, dtype=F64))) < 1e-8


# Bad input.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "lu"}, r"solver is 'lu'.*give one of 'cg'"),
        ({"max_steps": 0}, r"max_steps is 0.*give 1, 2"),
        ({"damping": -1.0}, "damping -1.0: neither can be negative"),
        ({"fixed_point": SignGradient(0.1)}, r"SignGradient does not change .* in jumps"),
    ],
)
def test_settings_out_of_range(settings, message) -> None:
    with pytest.raises(BilevelError, match=message):
        Implicit(**settings)


def test_a_solver_that_does_not_suit_the_problem() -> None:
    leader, batch = Numbers(4), torch.ones(2, 4, dtype=F64)
    with pytest.raises(BilevelError, match=r"need a symmetric matrix.*give solver=\"gmres\""):
        Implicit("cg").solve(pgm(0.1, 1), Boxed(), leader, batch)
    for solver, name in (
        (Known(optimum), "Known"),
        (Iterative(Momentum(Gradient(0.1), 0.9), 2), "Momentum"),
        (Iterative(Optimizer(torch.optim.SGD, lr=0.1), 2), "Optimizer"),
    ):
        with pytest.raises(BilevelError, match=rf"{name} is no plain gradient step; give fixed_"):
            Implicit("neumann").solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))
