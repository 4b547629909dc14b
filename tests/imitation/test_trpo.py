"""`TRPO`: its direction, its two promises, and its place in a game."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence
from torch.func import functional_call, jacrev

from bilevel import (
    Bilevel,
    BilevelError,
    FollowerProblem,
    LeaderProblem,
    NonFiniteError,
    Parametric,
)
from bilevel.adjoints import Detached
from bilevel.imitation import TRPO, CategoricalPolicy, GaussianPolicy

KINDS = [CategoricalPolicy, GaussianPolicy]


def make(kind, *, seed: int = 0, spread: float = 0.3, hidden=(4,)):
    """A small policy in float64 away from its symmetric start, states, and a surrogate."""
    torch.manual_seed(seed)
    policy = kind(3, 2, hidden=hidden).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    states = torch.randn(16, 3, dtype=torch.float64)
    actions = policy.act(states)
    old = policy(states).log_prob(actions).detach()
    advantages = torch.randn(16, dtype=torch.float64)

    def loss() -> Tensor:
        return -((policy(states).log_prob(actions) - old).exp() * advantages).mean()

    return policy, states, loss


def closure_of(policy: nn.Module, loss):
    def closure() -> Tensor:
        policy.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def snapshot(policy: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in policy.parameters()]


def same_bits(policy: nn.Module, before: list[Tensor]) -> bool:
    integer = {torch.float64: torch.int64, torch.float32: torch.int32}
    return all(
        torch.equal(p.detach().view(integer[p.dtype]), b.view(integer[p.dtype]))
        for p, b in zip(policy.parameters(), before, strict=True)
    )


def row(tensors) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def exact_fisher(policy: nn.Module, states: Tensor) -> Tensor:
    """E_s Σ_a π ∇log π ∇log πᵀ; for a Gaussian Jμᵀ Jμ / σ² + 2 Jlogσᵀ Jlogσ, from rows of J."""
    parameters = {name: p.detach() for name, p in policy.named_parameters()}

    def jacobian(function) -> Tensor:
        jacobians = jacrev(lambda p: function(functional_call(policy, p, (states,))))(parameters)
        return torch.cat([j.flatten(2) for j in jacobians.values()], dim=2)  # (B, k, m)

    with torch.no_grad():
        now = policy(states)
    if isinstance(policy, CategoricalPolicy):
        actions = torch.arange(2)
        scores = jacobian(lambda d: torch.stack([d.log_prob(a) for a in actions], dim=1))
        return torch.einsum("ba,bai,baj->ij", now.probs, scores, scores) / len(states)
    mean = jacobian(lambda d: d.mean)
    log_std = jacobian(lambda d: d.stddev.log())
    fisher = torch.einsum("ba,bai,baj->ij", now.variance.reciprocal(), mean, mean)
    return (fisher + 2 * torch.einsum("bai,baj->ij", log_std, log_std)) / len(states)


# The direction.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_the_step_is_the_natural_gradient_of_an_exact_fisher_matrix(kind, damping) -> None:
    policy, states, loss = make(kind)
    fisher = exact_fisher(policy, states)
    fisher += damping * torch.eye(len(fisher), dtype=torch.float64)
    gradient = row(torch.autograd.grad(loss(), list(policy.parameters())))
    natural = torch.linalg.solve(fisher, gradient)
    expected = -natural * math.sqrt(2e-6 / float(natural @ gradient))

    before = row(policy.parameters())
    optimizer = TRPO(policy, max_kl=1e-6, damping=damping, cg_steps=3 * len(before), shrink=0.999)
    optimizer.step(closure_of(policy, loss))
    assert optimizer.last.accepted
    assert optimizer.last.residual < 1e-8
    step = (row(policy.parameters()) - before) / 0.999**optimizer.last.backtracks
    assert (step - expected).norm() / expected.norm() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_fisher_matrix_is_that_of_the_kl_divergence(kind) -> None:
    """Its second derivative at the old policy: the bound and the direction speak of one thing."""
    policy, states, _ = make(kind)
    flat, shapes = row(policy.parameters()), dict(policy.named_parameters())

    def distance(point: Tensor) -> Tensor:
        pieces = point.split([p.numel() for p in shapes.values()])
        named = {n: piece.view_as(p) for (n, p), piece in zip(shapes.items(), pieces, strict=True)}
        return kl_divergence(old, functional_call(policy, named, (states,))).mean()

    with torch.no_grad():
        old = policy(states)
    hessian = torch.autograd.functional.hessian(distance, flat)
    torch.testing.assert_close(hessian, exact_fisher(policy, states))


def test_where_the_kl_is_its_quadratic_model_the_first_step_spends_the_bound() -> None:
    policy, _, loss = make(CategoricalPolicy)
    optimizer = TRPO(policy, max_kl=1e-8, damping=1e-8, cg_steps=100, shrink=0.999)
    optimizer.step(closure_of(policy, loss))
    assert optimizer.last.kl == pytest.approx(1e-8, rel=0.01)


# The two promises.


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    max_kl=st.floats(1e-4, 1.0),
    damping=st.sampled_from([0.0, 1e-3, 0.1]),
    spread=st.floats(0.0, 2.0),
)
def test_an_accepted_step_keeps_to_the_bound_and_lowers_the_loss(
    kind, seed, max_kl, damping, spread
) -> None:
    policy, states, loss = make(kind, seed=seed, spread=spread)
    optimizer = TRPO(policy, max_kl=max_kl, damping=damping, shrink=0.5)
    for _ in range(3):
        before, old, loss_before = snapshot(policy), copy.deepcopy(policy), loss().item()
        optimizer.step(closure_of(policy, loss))
        last = optimizer.last
        if last.accepted:
            with torch.no_grad():
                measured = kl_divergence(old(states), policy(states)).mean().item()
            assert measured == pytest.approx(last.kl, rel=1e-9, abs=1e-15)
            assert measured <= max_kl
            assert last.improvement > 0
            assert loss().item() == pytest.approx(loss_before - last.improvement)
        else:
            assert same_bits(policy, before)
            assert (last.kl, last.improvement) == (0, 0)


class Shared(nn.Module):
    """A Gaussian whose mean and spread are views of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))
        self.std = nn.Parameter(torch.ones(1))

    def forward(self, states: Tensor) -> Independent:
        size = (len(states), 1)
        normal = Normal(self.mean.expand(size), self.std.expand(size), validate_args=False)
        return Independent(normal, 1, validate_args=False)


def test_the_old_policy_does_not_move_along_with_the_new_one() -> None:
    policy, states = Shared(), torch.zeros(4, 1)
    optimizer = TRPO(policy, max_kl=0.5, damping=0.0)
    optimizer.step(closure_of(policy, lambda: policy(states).mean.mean()))
    assert policy.mean.item() == pytest.approx(-1.0)  # ½ μ² = δ
    assert optimizer.last.kl == pytest.approx(0.5)


def test_the_kl_after_backtracks_is_that_from_the_old_policy() -> None:
    policy, states = Shared(), torch.zeros(4, 1)
    optimizer = TRPO(policy, max_kl=0.5, damping=0.0)
    optimizer.step(closure_of(policy, lambda: (policy(states).mean + 0.3).square().mean()))
    assert optimizer.last.backtracks == 3  # the first |−κʲ + 0.3| below 0.3
    assert policy.mean.item() == pytest.approx(-(0.8**3))
    assert optimizer.last.kl == pytest.approx(0.8**6 / 2)


@pytest.mark.parametrize("sign_of_zero", [0.0, -0.0])
def test_a_step_that_cannot_improve_leaves_the_bits(sign_of_zero) -> None:
    """The gradient points uphill: no length of step lowers the loss."""
    policy, _, loss = make(CategoricalPolicy)
    with torch.no_grad():
        policy.network[0].bias.fill_(sign_of_zero)
    before, optimizer = snapshot(policy), TRPO(policy, max_kl=1e-3, damping=10.0, backtracks=4)
    calls = []

    def closure() -> Tensor:
        policy.zero_grad()
        value = loss()
        (-value).backward()
        calls.append(value)
        return value

    optimizer.step(closure)
    assert not optimizer.last.accepted
    assert optimizer.last.backtracks == 4
    assert len(calls) == 1 + 5  # the gradient, the full step and four shorter ones
    assert same_bits(policy, before)


@pytest.mark.parametrize("spoil", [lambda v: v * math.nan, lambda v: v * math.inf, lambda v: v * 0])
def test_a_loss_without_a_usable_gradient_gives_no_step(spoil) -> None:
    policy, _, loss = make(GaussianPolicy)
    before, optimizer = snapshot(policy), TRPO(policy)
    optimizer.step(closure_of(policy, lambda: spoil(loss())))
    assert not optimizer.last.accepted
    assert same_bits(policy, before)


def test_an_infinite_loss_is_not_improved_by_a_finite_one() -> None:
    policy, _, loss = make(CategoricalPolicy)
    before, optimizer, results = snapshot(policy), TRPO(policy), [math.inf]

    def closure() -> float:
        closure_of(policy, loss)()
        return results.pop() if results else 0.0

    optimizer.step(closure)
    assert not optimizer.last.accepted
    assert same_bits(policy, before)


def test_a_gradient_that_is_not_finite_under_a_finite_loss_gives_no_step() -> None:
    policy, states, _ = make(CategoricalPolicy)
    before, optimizer = snapshot(policy), TRPO(policy)
    optimizer.step(closure_of(policy, lambda: (0 * policy(states).logits).sum().sqrt()))
    assert not optimizer.last.accepted
    assert same_bits(policy, before)


@pytest.mark.parametrize("error", [NonFiniteError("diverged"), RuntimeError("stopped")])
def test_a_closure_that_raises_at_a_trial_leaves_the_bits(error) -> None:
    policy, _, loss = make(CategoricalPolicy)
    before, optimizer, calls = snapshot(policy), TRPO(policy, backtracks=2), []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise error
        return closure_of(policy, loss)()

    if isinstance(error, NonFiniteError):  # what a game says: this trial is not to be taken
        optimizer.step(closure)
    else:
        with pytest.raises(RuntimeError, match="stopped"):
            optimizer.step(closure)
    assert len(calls) > 1
    assert not optimizer.last.accepted
    assert same_bits(policy, before)


@pytest.mark.parametrize("name", ["log_std", "network.0.weight"])
def test_frozen_parameters_are_left_alone(name) -> None:
    policy, _, loss = make(GaussianPolicy)
    policy.get_parameter(name).requires_grad_(False)
    before = copy.deepcopy(policy)
    optimizer = TRPO(policy)
    optimizer.step(closure_of(policy, loss))
    assert optimizer.last.accepted
    for other, parameter in policy.named_parameters():
        assert torch.equal(parameter, before.get_parameter(other)) == (other == name)


def test_the_states_are_those_of_the_loss_whatever_is_evaluated_without_gradients() -> None:
    policy, states, loss = make(CategoricalPolicy)

    def with_a_rollout() -> Tensor:
        policy.act(100 * states)
        return loss()

    optimizer, twin = TRPO(policy), copy.deepcopy(policy)
    optimizer.step(closure_of(policy, with_a_rollout))
    with torch.no_grad():
        measured = kl_divergence(twin(states), policy(states)).mean().item()
    assert optimizer.last.kl == pytest.approx(measured)
    assert not policy._forward_hooks


# Problems that it solves.


def test_a_contextual_bandit_is_solved() -> None:
    """Three states, each with its own best arm."""
    policy, states = CategoricalPolicy(3, 3), torch.eye(3)
    optimizer = TRPO(policy, max_kl=0.05)
    best = torch.tensor([2, 0, 1])

    def loss() -> Tensor:
        return -policy(states).probs.gather(1, best.unsqueeze(1)).mean()

    for _ in range(30):
        optimizer.step(closure_of(policy, loss))
    assert loss().item() < -0.97


def test_a_gaussian_finds_the_action_that_pays_from_samples() -> None:
    """Reward −(a − s)²: μ(s) = s, and the spread shrinks."""
    policy = GaussianPolicy(1, 1, hidden=(16,))
    optimizer = TRPO(policy, max_kl=0.02)
    for _ in range(60):
        states = torch.rand(512, 1) * 2 - 1
        actions = policy.act(states)
        old = policy(states).log_prob(actions).detach()
        reward = -(actions - states).square().sum(1)
        advantages = (reward - reward.mean()) / reward.std()

        def loss(s=states, a=actions, old=old, advantages=advantages) -> Tensor:
            return -((policy(s).log_prob(a) - old).exp() * advantages).mean()

        optimizer.step(closure_of(policy, loss))
    states = torch.linspace(-1, 1, 21).unsqueeze(1)
    assert (policy(states).mean - states).abs().max() < 0.25
    assert policy.log_std.exp().item() < 0.4


# In a game.


class Tilt(FollowerProblem):
    """max over y ∈ R² of E_π[y_a] − ½‖y‖²: a critic that y = π answers."""

    sense = "max"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2)

    def objective(self, leader: Imitator, y: Tensor, batch: Tensor) -> Tensor:
        return (leader.policy(batch).probs @ y).mean() - y.square().sum() / 2


class Imitator(LeaderProblem):
    """Goes where the critic is low; whatever the critic says about the first action, it is dear."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = CategoricalPolicy(3, 2, hidden=(8,))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return (self.policy(batch).probs @ (y + torch.tensor([1.0, 0.0]))).mean()


def make_game() -> Bilevel:
    torch.manual_seed(0)
    leader, solver = Imitator(), Parametric(torch.zeros(2))
    return Bilevel(
        leader,
        Tilt(),
        solver,
        leader_opt=TRPO(leader.policy, max_kl=0.02),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=0.05),
        adjoint=Detached(),
    )


def play(game: Bilevel, steps: range) -> None:
    for step in steps:
        states = torch.randn(32, 3, generator=torch.Generator().manual_seed(step))
        before = copy.deepcopy(game.leader.policy)
        game.step(states)
        with torch.no_grad():
            kl = kl_divergence(before(states), game.leader.policy(states)).mean().item()
        assert kl <= 0.02
        assert game.leader_opt.last.accepted == (kl > 0)


def test_it_moves_the_leader_of_a_game() -> None:
    game = make_game()
    play(game, range(20))
    probs = game.leader.policy(torch.randn(64, 3)).probs.mean(0)
    assert probs[1] > 0.8
    assert (game.solver.y - torch.tensor([0.0, 1.0])).abs().max() < 0.4  # the critic followed


def test_a_stopped_game_goes_on_bit_for_bit() -> None:
    whole = make_game()
    play(whole, range(6))
    stopped = make_game()
    play(stopped, range(3))
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = make_game()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    play(resumed, range(3, 6))
    assert same_bits(resumed.leader.policy, snapshot(whole.leader.policy))
    assert torch.equal(resumed.solver.y, whole.solver.y)


def test_its_state_carries_the_settings() -> None:
    policy = CategoricalPolicy(1, 2)
    optimizer = TRPO(policy)
    optimizer.load_state_dict(TRPO(policy, max_kl=0.5, cg_steps=3).state_dict())
    assert (optimizer.param_groups[0]["max_kl"], optimizer.param_groups[0]["cg_steps"]) == (0.5, 3)


# Bad input.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_kl", 0.0),
        ("max_kl", math.nan),
        ("max_kl", math.inf),
        ("damping", -1e-3),
        ("cg_steps", 0),
        ("backtracks", -1),
        ("shrink", 1.0),
        ("shrink", 0.0),
    ],
)
def test_settings_out_of_range_are_named(name, value) -> None:
    with pytest.raises(BilevelError, match=f"^{name} is {value}: .*; give "):
        TRPO(CategoricalPolicy(1, 2), **{name: value})


def test_a_policy_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(BilevelError, match="no parameter that requires gradients"):
        TRPO(CategoricalPolicy(1, 2).requires_grad_(False))


@pytest.mark.parametrize("times", [0, 2])
def test_a_loss_that_does_not_evaluate_the_policy_once_is_refused(times) -> None:
    policy, states = CategoricalPolicy(3, 2), torch.randn(4, 3)
    before = snapshot(policy)

    def loss() -> Tensor:
        terms = [policy(states).entropy().mean() for _ in range(times)]
        return sum(terms, policy.network[0].weight.sum())

    with pytest.raises(BilevelError, match=f"evaluated the policy {times} times"):
        TRPO(policy).step(closure_of(policy, loss))
    assert same_bits(policy, before)
    assert not policy._forward_hooks


def test_a_distribution_of_another_kind_is_refused() -> None:
    class Coin(nn.Linear):
        def forward(self, states: Tensor) -> Bernoulli:
            return Bernoulli(logits=super().forward(states))

    policy = Coin(3, 1)
    loss = closure_of(policy, lambda: policy(torch.randn(4, 3)).probs.mean())
    with pytest.raises(BilevelError, match="returned Bernoulli"):
        TRPO(policy).step(loss)


def test_an_action_that_is_ruled_out_stays_so() -> None:
    class Masked(CategoricalPolicy):
        def forward(self, states: Tensor) -> Categorical:
            logits = self.network(states)
            ruled_out = torch.tensor([False, False, True])
            return Categorical(logits=logits.masked_fill(ruled_out, -1e9), validate_args=False)

    policy, states = Masked(2, 3), torch.randn(8, 2)
    optimizer = TRPO(policy)
    optimizer.step(closure_of(policy, lambda: policy(states).probs[:, 0].mean()))
    assert optimizer.last.accepted
    assert not policy(states).probs[:, 2].any()
