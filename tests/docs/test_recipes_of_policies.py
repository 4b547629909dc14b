"""The recipes for policies under an adversary of their observations, against loops by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

import bilevel
from bilevel.imitation import TRPO, Policy
from bilevel.robustness import Batch
from tests.recipes import example, flat, follow
from tests.valleys import F64


@pytest.fixture
def adversary(tmp_path: Path) -> dict[str, Any]:
    return follow(example(tmp_path), "An adversary of the observations")


def climb(delta: Tensor, gap: Callable[[Tensor], Tensor]) -> Tensor:
    """Five steps of PGM, by hand."""
    for _ in range(5):
        delta.requires_grad_()
        (slope,) = torch.autograd.grad(gap(delta).sum(), delta)
        delta = (delta.detach() + 0.0125 * slope.sign()).clamp(-0.05, 0.05)
    return delta


def rollouts(policy: Policy) -> Iterator[dict[str, Tensor]]:
    for _ in range(4):
        s, advantage, noise = (torch.randn(64, *size, dtype=F64) for size in ((4,), (), ()))
        a = policy.act(s)
        log_prob = policy(s).log_prob(a).detach() + 0.3 * noise  # some ratios are clipped
        yield {"s": s, "a": a, "log prob": log_prob, "advantage": advantage}


def sharpened(policy: Policy) -> tuple[Policy, Policy]:
    """The policy and its copy, no longer almost uniform."""
    with torch.no_grad():
        policy.double().network[-1].weight.mul_(30)
    return policy, copy.deepcopy(policy)


def worst(policy: Policy, batch: dict[str, Tensor]) -> Tensor:
    """The worst observations near the batch's, from a random start."""
    s = batch["s"]
    start = torch.empty_like(s).uniform_(-0.05, 0.05)
    return s + climb(start, lambda delta: kl_divergence(policy(s), policy(s + delta)))


def test_sa_ppo(adversary) -> None:
    ours, theirs = sharpened(adversary["policy"])
    game = adversary["sa_ppo"]
    game.leader_opt, optimizer = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, theirs))
    for step, batch in enumerate(rollouts(ours)):
        torch.manual_seed(step)
        game.step(batch)
        torch.manual_seed(step)
        clean, moved = theirs(batch["s"]), theirs(worst(theirs, batch))
        ratio = (clean.log_prob(batch["a"]) - batch["log prob"]).exp()
        clipped = ratio.clamp(0.8, 1.2)
        assert (clipped != ratio).any()
        gain = torch.min(ratio * batch["advantage"], clipped * batch["advantage"]).mean()
        optimizer.zero_grad()
        (kl_divergence(clean, moved).mean() - gain).backward()
        optimizer.step()
    torch.testing.assert_close(flat(ours), flat(theirs))


def test_the_divergence_is_flat_where_there_is_no_perturbation(adversary) -> None:
    policy, _ = sharpened(adversary["policy"])
    observed, leader, batch = adversary["observed"], adversary["smooth"], next(rollouts(policy))
    bilevel.testing.check_follower(observed, leader, batch)
    zero = torch.zeros(64, 4, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(observed.objective(leader, zero, batch).sum(), zero)
    assert slope.abs().max() < 1e-12
    start = observed.init(batch)
    found = adversary["sa_ppo"].solve(batch).value
    values = [observed.objective(leader, delta, batch).mean() for delta in (zero, start, found)]
    assert values[0].abs() < 1e-12 < 1e-5 < values[1] < 0.7 * values[2], values


def test_sa_trpo_calls_the_policy_once(adversary) -> None:
    ours, theirs = sharpened(adversary["policy"])
    game, optimizer = adversary["sa_trpo"], TRPO(theirs)
    for step, batch in enumerate(rollouts(ours)):
        torch.manual_seed(step)
        game.step(batch)
        torch.manual_seed(step)
        both = torch.cat([batch["s"], worst(theirs, batch)])

        def closure(batch=batch, both=both):
            optimizer.zero_grad()
            logits = theirs(both).logits
            clean, moved = Categorical(logits=logits[:64]), Categorical(logits=logits[64:])
            ratio = (clean.log_prob(batch["a"]) - batch["log prob"]).exp()
            loss = kl_divergence(clean, moved).mean() - (ratio * batch["advantage"]).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert game.leader_opt.last.accepted
        assert game.leader_opt.last == optimizer.last
    torch.testing.assert_close(flat(ours), flat(theirs))


def test_trpo_refuses_a_loss_that_calls_the_policy_for_each_term(adversary) -> None:
    smooth, policy = adversary["smooth"], adversary["policy"]
    game = bilevel.Bilevel(
        smooth,
        adversary["observed"],
        bilevel.pgm(0.0125, 5),
        leader_opt=TRPO(policy),
        adjoint=bilevel.Detached(),
    )
    with pytest.raises(bilevel.BilevelError, match="evaluated the policy 3 times"):
        game.step(adversary["rollout"])


def test_cloning_under_an_adversary(adversary) -> None:
    ours, theirs = sharpened(adversary["policy"])
    game = adversary["cloning"]
    game.leader_opt, optimizer = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, theirs))
    for batch in rollouts(ours):
        s, a = batch["s"], batch["a"]
        game.step(Batch(s, a))
        delta = climb(torch.zeros_like(s), lambda d, s=s, a=a: -theirs(s + d).log_prob(a))
        optimizer.zero_grad()
        (-theirs(s + delta).log_prob(a).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(flat(ours), flat(theirs))
