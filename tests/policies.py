"""Small policies with a surrogate loss, and what the tests of TRPO compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel.imitation import CategoricalPolicy, GaussianPolicy

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
