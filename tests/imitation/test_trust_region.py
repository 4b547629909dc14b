"""The trust region: the direction of a step in it, its Fisher matrix and its KL divergence."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.func import functional_call, jacrev

from bilevel import BilevelError
from bilevel.imitation import TRPO, CategoricalPolicy, GaussianPolicy
from bilevel.imitation.trust_region import TrustRegion
from tests.policies import KINDS, closure_of, make


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


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_the_residual_of_one_iteration_is_a_share_of_the_gradient(size) -> None:
    """Along the gradient, as far as it lowers the quadratic form."""
    policy, states, loss = make(CategoricalPolicy)
    fisher = exact_fisher(policy, states)
    fisher += 0.1 * torch.eye(len(fisher), dtype=torch.float64)
    gradient = row(torch.autograd.grad(size * loss(), list(policy.parameters())))
    along = fisher @ gradient
    left = gradient - along * (gradient @ gradient) / (gradient @ along)
    optimizer = TRPO(policy, cg_steps=1, damping=0.1)
    optimizer.step(closure_of(policy, lambda: size * loss()))
    assert optimizer.last.residual == pytest.approx(float(left.norm() / gradient.norm()))


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


OTHERS = {
    "Bernoulli": lambda out: Bernoulli(logits=out),
    "Independent": lambda out: Independent(Bernoulli(logits=out), 1),
    "Normal": lambda out: Normal(out, 1),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_distribution_of_another_kind_is_refused(kind) -> None:
    class Other(nn.Linear):
        def forward(self, states: Tensor) -> Distribution:
            return OTHERS[kind](super().forward(states))

    policy, states, actions = Other(3, 1), torch.randn(4, 3), torch.zeros(4, 1)
    loss = closure_of(policy, lambda: policy(states).log_prob(actions).mean())
    with pytest.raises(BilevelError, match=f"returned {kind}"):
        TRPO(policy).step(loss)


def test_a_squashed_gaussian_takes_the_step_of_the_gaussian() -> None:
    """Their log probabilities differ by the transform's, which is constant, their KL does not."""
    policy, states, _ = make(GaussianPolicy)
    twin, actions = copy.deepcopy(policy), policy.act(states) / 2
    transform = TanhTransform()

    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = twin

        def forward(self, states: Tensor) -> Distribution:
            return TransformedDistribution(self.policy(states), transform)

    squashed = Squashed()
    for player, acted in ((policy, actions), (squashed, transform(actions))):
        loss = closure_of(player, lambda: -player(states).log_prob(acted).mean())  # noqa: B023
        TRPO(player).step(loss)
    torch.testing.assert_close(row(twin.parameters()), row(policy.parameters()))


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


def test_states_may_come_in_a_rollouts_two_dimensions() -> None:
    """The mean over them is that over all, and so is the step."""
    states, steps = torch.randn(5, 4, 3), []
    for given in (states, states.flatten(0, 1)):
        torch.manual_seed(0)
        policy = GaussianPolicy(3, 2)
        optimizer = TRPO(policy, damping=0.1)

        def closure(policy=policy, optimizer=optimizer, given=given) -> torch.Tensor:
            optimizer.zero_grad()
            loss = policy(given).mean.sin().mean() + policy.log_std.sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        steps.append([parameter.detach() for parameter in policy.parameters()])
    torch.testing.assert_close(*steps)


def test_transforms_may_be_nested() -> None:
    class Squashed(GaussianPolicy):
        def forward(self, observations: torch.Tensor) -> TransformedDistribution:
            squashed = TransformedDistribution(super().forward(observations), TanhTransform())
            return TransformedDistribution(squashed, AffineTransform(0.0, 2.0, event_dim=1))

    policy, states = Squashed(3, 2), torch.randn(5, 3)
    with torch.no_grad():
        actions = policy(states).sample()
    optimizer = TRPO(policy)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -policy(states).log_prob(actions).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.last.accepted


def test_parameters_without_a_distribution_are_infinitely_far() -> None:
    """So that the line search tries a shorter step."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, states: Tensor) -> Normal:
            return Normal(states, self.scale, validate_args=True)

    region = TrustRegion(Scaled(), ((torch.zeros(4, 1),), {}))
    assert region.kl({"scale": torch.ones(1)}) == 0
    assert region.kl({"scale": -torch.ones(1)}) == math.inf
