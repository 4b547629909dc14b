"""Solvers: their answers in closed form, and the promise to leave the leader as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bilevel import (
    BilevelError,
    FollowerProblem,
    Iterative,
    Parametric,
    Solver,
    ZeroSum,
    fgsm,
    pgm,
    testing,
)
from bilevel.robustness import L2, Batch, Linf
from bilevel.updates import CNN, MLP, ConvRNN, CoordinateRNN, Gradient, Momentum, SignGradient
from tests.problems import BatchNormNet, LinearBox, Nearest, Saddle, Weights, image_game, images


def solvers() -> dict[str, Solver]:
    """One of every kind, for 1×4×4 images and six of them."""
    torch.manual_seed(1)
    cnn = {"width": 4, "form": "two-layer"}
    return {
        "plain": pgm(0.1, 0),
        "pgm": pgm(0.02, 5),
        "fgsm, train": fgsm(0.1, leader_mode="train"),
        "momentum": Iterative(Momentum(SignGradient(0.02), 1.0), 3),
        "naive": Iterative(CNN(1, 0.1, inputs=("context",), **cnn), 1),
        "grad": Iterative(CNN(1, 0.1, **cnn), 1),
        "two-step, train": Iterative(CNN(1, 0.1, **cnn), 2, leader_mode="train"),
        "conv-rnn": Iterative(ConvRNN(1, 0.1, hidden=4), 3),
        "coordinate": Iterative(CoordinateRNN(0.1, hidden=4), 2),
        "mlp, warm": Iterative(MLP(6 * 16), 1, warm_start=True),
        "parametric": Parametric(torch.rand(6, 1, 4, 4)),
    }


@pytest.mark.parametrize("name", solvers())
def test_every_solver_leaves_the_leader_as_it_was(name: str) -> None:
    leader, follower, batch = image_game()
    leader.train()
    leader.model.layers[0].eval()  # mixed training flags come back mixed
    leader.loss(torch.zeros_like(batch.x), batch).backward()  # gradients are kept too
    testing.check_solver(solvers()[name], follower, leader, batch)


@pytest.mark.parametrize("name", solvers())
def test_the_leader_is_left_as_it_was_when_the_objective_raises(name: str) -> None:
    class Broken(Linf):
        def objective(self, leader, y, batch):
            super().objective(leader, y, batch)
            raise RuntimeError("no objective")

    leader, _, batch = image_game()
    before = copy.deepcopy(leader)
    with pytest.raises(RuntimeError, match="no objective"):
        solvers()[name].solve(Broken(0.1), leader, batch)
    assert all(module.training for module in leader.modules())
    assert all(parameter.requires_grad for parameter in leader.parameters())
    for old, new in zip(before.buffers(), leader.buffers(), strict=True):
        assert torch.equal(old, new)


def test_a_solve_in_train_mode_normalises_by_the_batch() -> None:
    leader, follower, batch = image_game()
    for module in leader.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 3.0
    answers = [
        pgm(0.02, 3, leader_mode=mode).solve(follower, leader, batch).value
        for mode in ("eval", "train")
    ]
    assert not torch.equal(*answers)


@given(
    weights=st.lists(st.floats(0.1, 2.0) | st.floats(-2.0, -0.1), min_size=2, max_size=6),
    eps=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_pgm_and_fgsm_find_the_corner_of_a_linear_objective(
    weights: list[float], eps: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(len(weights), 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    follower = LinearBox(eps)
    leader = ZeroSum(model, follower)
    batch = Batch(torch.randn(3, len(weights)), torch.zeros(3, dtype=torch.long))
    corner = (eps * model.weight.detach().sign()).expand(3, -1)
    for solver in (fgsm(eps), pgm(0.3 * eps, 5)):
        solution = solver.solve(follower, leader, batch)
        torch.testing.assert_close(solution.value, corner)
        best = (batch.x @ model.weight.T + model.bias).mean() + eps * model.weight.abs().sum()
        torch.testing.assert_close(solution.stats["objective_after"], best.detach())


def test_a_minimising_follower_is_sent_downhill() -> None:
    leader, batch = Weights(5), Batch(torch.randn(4, 5), torch.zeros(4))
    solution = Iterative(Gradient(0.5), 60).solve(Nearest(), leader, batch)
    torch.testing.assert_close(solution.value, (leader.w * batch.x).detach())
    stats = solution.stats
    start = (leader.w * batch.x).square().sum(1).mean() / 2
    torch.testing.assert_close(stats["objective_before"], start.detach())
    assert stats["objective_after"] < 1e-10
    assert stats["gradient_norm"] < 1e-5


def test_the_state_goes_from_step_to_step() -> None:
    """On a linear objective momentum adds 1, 1 + β, 1 + β + β² gradients."""
    follower = LinearBox(eps=10.0)
    leader = ZeroSum(nn.Linear(3, 1), follower)
    batch = Batch(torch.zeros(2, 3), torch.zeros(2))
    value = Iterative(Momentum(Gradient(0.1), 0.5), 3).solve(follower, leader, batch).value
    expected = 0.1 * (1 + 1.5 + 1.75) * leader.model.weight.detach().expand(2, -1)
    torch.testing.assert_close(value, expected)


def test_gradient_norm_is_the_mean_over_samples() -> None:
    leader, batch = Weights(3), Batch(torch.randn(4, 3), torch.zeros(4))
    stats = Iterative(Gradient(0.5), 1).solve(Nearest(), leader, batch).stats
    expected = (leader.w * batch.x).norm(dim=1).mean()
    torch.testing.assert_close(stats["gradient_norm"], expected.detach())


@pytest.mark.parametrize("name", ["pgm", "momentum", "naive", "grad", "conv-rnn", "coordinate"])
def test_an_answer_does_not_depend_on_the_batch_mates(name: str) -> None:
    leader, follower, batch = image_game(dtype=torch.float64)
    solver = solvers()[name].double().eval()
    together = solver.solve(follower, leader, batch).value
    for i in range(len(batch.y)):
        alone = solver.solve(follower, leader, Batch(batch.x[i : i + 1], batch.y[i : i + 1])).value
        torch.testing.assert_close(alone[0], together[i])


def test_the_solve_computes_no_weight_gradients() -> None:
    """The input gradient's pass must not do the work for gradients that nobody reads."""
    leader, follower, batch = image_game()
    asked = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return x * weight

        @staticmethod
        def backward(ctx, grad):
            asked.append(ctx.needs_input_grad)
            return grad, None

    class Net(BatchNormNet):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return super().forward(Probe.apply(x, self.scale))

    leader.model = Net()
    pgm(0.02, 3).solve(follower, leader, batch)
    assert asked == [(True, False)] * 3


def test_an_update_without_gradient_costs_no_pass_of_the_leader() -> None:
    leader, follower, batch = image_game()
    passes = []
    leader.model.register_forward_hook(lambda *_: passes.append(1))
    naive = solvers()["naive"]
    naive.solve(follower, leader, batch, evaluate=False)
    assert not passes
    stats = naive.solve(follower, leader, batch).stats
    assert {"objective_before", "objective_after"} == set(stats)


def test_the_gradient_of_phi_flows_through_the_points_but_not_through_the_gradients() -> None:
    """Two steps written by hand, as the paper's Sec. 3 has them (no second derivatives)."""
    leader, follower, batch = image_game(dtype=torch.float64)
    leader.eval()
    update = CNN(1, 0.1, width=4, form="two-layer").double()
    value = Iterative(update, 2).solve(follower, leader, batch).value
    weights = torch.randn_like(value)
    ours = torch.autograd.grad((value * weights).sum(), list(update.parameters()))

    delta = torch.zeros_like(batch.x)
    for _ in range(2):
        point = delta.detach().requires_grad_()
        loss = follower.objective(leader, point, batch).sum()
        (gradient,) = torch.autograd.grad(loss, point)
        delta, _ = update(delta, gradient, batch.x + delta, None)
        delta = (batch.x + delta.clamp(-0.1, 0.1)).clamp(0, 1) - batch.x
    by_hand = torch.autograd.grad((delta * weights).sum(), list(update.parameters()))
    for mine, theirs in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("start", [0.0, 0.05])
@pytest.mark.parametrize("threat", [Linf, L2])
def test_the_image_threats_conform(threat: type[FollowerProblem], start: float) -> None:
    follower, exact = threat(0.1, start=start), threat is Linf  # L2's is a composition
    leader = ZeroSum(BatchNormNet().eval(), follower)
    testing.check_follower(follower, leader, images(), nearest=exact)


def test_a_warm_start_goes_on_where_it_ended() -> None:
    leader, batch = Weights(5), Batch(torch.randn(4, 5), torch.zeros(4))
    at_once = Iterative(Momentum(Gradient(0.1), 0.5), 6)
    piecewise = Iterative(Momentum(Gradient(0.1), 0.5), 2, warm_start=True)
    first, second = (piecewise.solve(Nearest(), leader, batch).stats for _ in range(2))
    assert second["objective_before"] == first["objective_after"]
    resumed = Iterative(Momentum(Gradient(0.1), 0.5), 2, warm_start=True)
    resumed.load_state_dict(piecewise.state_dict())
    expected = at_once.solve(Nearest(), leader, batch).value
    assert at_once.kept is None
    for solver in (piecewise, resumed):
        torch.testing.assert_close(solver.solve(Nearest(), leader, batch).value, expected)
    cold = Iterative(Momentum(Gradient(0.1), 0.5), 6)
    cold.load_state_dict(resumed.state_dict())  # knows the answer, and does not start there
    assert torch.equal(cold.solve(Nearest(), leader, batch).value, expected)
    with pytest.raises(BilevelError, match="fits batches of one size"):
        resumed.solve(Nearest(), leader, Batch(batch.x[:2], batch.y[:2]))


def test_a_projection_in_place_leaves_earlier_answers_alone() -> None:
    class Clamps(LinearBox):
        def project(self, y, batch):
            return y.clamp_(-batch.y.item(), batch.y.item())

    follower = Clamps()
    leader = ZeroSum(nn.Linear(3, 1), follower)
    solver = Iterative(SignGradient(1.0), 1, warm_start=True)
    answers = [
        solver.solve(follower, leader, Batch(torch.zeros(1, 3), torch.tensor(eps))).value
        for eps in (0.5, 0.1)
    ]
    assert [answer.abs().max().item() for answer in answers] == pytest.approx([0.5, 0.1])


def test_the_saddle_is_a_scalar_problem() -> None:
    follower = Saddle()
    leader = ZeroSum(nn.Linear(1, 1), follower)
    leader.model.x = torch.tensor(2.0, dtype=torch.float64)
    solution = Iterative(Gradient(0.1), 3).solve(follower, leader, None)
    torch.testing.assert_close(solution.value, torch.tensor(0.6, dtype=torch.float64))
    assert solution.evaluations == 3
