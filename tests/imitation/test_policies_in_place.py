"""A policy that changes its observations in place is refused; nothing that was recorded moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from bilevel import BilevelError
from bilevel.imitation import CategoricalPolicy, Policy, Sampler, clone, make_envs

TOLD = "changes its observations in place .*: .*; let it compute new ones"


class Centred(CategoricalPolicy):
    """Takes 1 off each time."""

    def forward(self, observations: Tensor) -> Categorical:
        return super().forward(observations.sub_(1))


class Blind(CategoricalPolicy):
    """Hides the velocities: the second time changes nothing."""

    def forward(self, observations: Tensor) -> Categorical:
        observations[:, 1::2] = 0
        return super().forward(observations)


@pytest.mark.parametrize("kind", [Centred, Blind])
def test_rollouts_of_it_are_refused(kind: type[CategoricalPolicy]) -> None:
    with pytest.raises(BilevelError, match=TOLD):
        Sampler(make_envs("CartPole-v1", 2), kind(4, 2)).collect(3)


@pytest.mark.parametrize("kind", [Centred, Blind])
def test_it_does_not_change_the_experts_states(kind: type[CategoricalPolicy]) -> None:
    states = torch.randn(8, 4)
    before = states.clone()
    with pytest.raises(BilevelError, match=TOLD):
        clone(kind(4, 2), states, torch.zeros(8).long())
    assert torch.equal(states, before)


def test_what_act_does_in_place_is_not_recorded() -> None:
    class Clamping(Policy):
        def forward(self, observations: Tensor) -> Categorical:
            return Categorical(logits=observations[:, :2])

        def act(self, observations: Tensor) -> Tensor:
            return super().act(observations.zero_())

    rollout = Sampler(make_envs("CartPole-v1", 2), Clamping()).collect(4)
    assert rollout.observations.all()
