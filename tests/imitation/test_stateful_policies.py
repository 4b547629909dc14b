"""A policy that keeps a state is refused by TRPO; its history belongs into the observations."""

from __future__ import annotations

import gymnasium
import pytest
import torch
import torch.nn.functional as F
from gymnasium.wrappers import FlattenObservation, FrameStackObservation
from torch import Tensor, nn
from torch.distributions import Categorical

from bilevel import BilevelError
from bilevel.imitation import TRPO, CategoricalPolicy, Policy, Sampler, Task, make_envs, trpo_step
from tests.policies import same_bits, snapshot

ENV = "CartPole-v1"


class Recurrent(Policy):
    """Remembers what it was shown; begins anew where it sees other environments."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 2)
        self.memory = torch.empty(0, 8)

    def forward(self, observations: Tensor) -> Categorical:
        if len(self.memory) != len(observations):
            self.memory = torch.zeros(len(observations), 8)
        self.memory = self.cell(observations, self.memory.detach())
        return Categorical(logits=self.head(self.memory))


class Normalised(CategoricalPolicy):
    """Centres the observations by a mean that it keeps, slowly."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, observations: Tensor) -> Categorical:
        if self.training:
            self.mean.lerp_(observations.mean(0), 1e-5)
        return super().forward(observations - self.mean)


class Noisy(CategoricalPolicy):
    """Drops inputs, without a layer that says so."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, observations: Tensor) -> Categorical:
        return super().forward(F.dropout(observations, training=self.training))


def update(policy: Policy) -> TRPO:
    rollout = Sampler(make_envs(ENV, 4), policy).collect(10)
    optimizer = TRPO(policy)
    trpo_step(policy, optimizer, rollout, torch.randn(10, 4))
    return optimizer


@pytest.mark.parametrize(
    ("kind", "changed"),
    [(Recurrent, "its distribution"), (Normalised, "its buffer mean"), (Noisy, "its distribution")],
)
def test_it_is_refused_and_not_moved(kind: type[Policy], changed: str) -> None:
    policy = kind()
    before = snapshot(policy)
    with pytest.raises(BilevelError, match=f"again changes {changed}: .*; put history into the ob"):
        update(policy)
    assert same_bits(policy, before)


@pytest.mark.parametrize("kind", [Normalised, Noisy])
def test_one_that_is_frozen_is_taken(kind: type[Policy]) -> None:
    assert update(kind().eval()).last.accepted


def test_stacked_frames_are_its_history() -> None:
    wrappers = (FrameStackObservation.wrapper_spec(stack_size=3), FlattenObservation.wrapper_spec())
    gymnasium.register(
        "Stacked-v0",
        gymnasium.spec(ENV).entry_point,
        max_episode_steps=9,
        additional_wrappers=wrappers,
    )
    try:
        envs = make_envs("Stacked-v0", 2)
        assert Task.of(envs).observations == 12
        shown = Sampler(envs, CategoricalPolicy(12, 2)).collect(5).observations
    finally:
        del gymnasium.registry["Stacked-v0"]
    assert torch.equal(shown[1:, :, 4:8], shown[:-1, :, 8:])


def test_autocast_within_the_loss_is_no_state() -> None:
    """It rounds the loss's own evaluation, to which the trust region's are not compared."""
    policy = CategoricalPolicy(4, 2)
    policy.register_buffer("limit", torch.tensor(torch.nan))
    observations, advantages = torch.randn(64, 4), torch.randn(64)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss = -(policy(observations).log_prob(torch.zeros(64)) * advantages).mean()
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    optimizer = TRPO(policy)
    with torch.enable_grad():
        optimizer.step(closure)
    assert optimizer.last.kl >= 0
