"""The control kit: policies, and the trust region method that moves them.

CategoricalPolicy, GaussianPolicy    stochastic policies of discrete and continuous actions
Value                                what a state is worth
make_envs, Sampler, Rollout          many environments at once, and what happened there
demonstrate, Demonstrations          what an expert did; MountainCarExpert needs no training
Discriminator                        the follower: tells the policy's behaviour from the expert's
Imitator                             the leader: a policy that earns what the follower gives
generalized_advantages               how much better an action was than the policy's average
TRPO                                 moves a policy: the ``leader_opt`` of an imitation game
"""

from bilevel.imitation.advantages import generalized_advantages
from bilevel.imitation.demonstrations import (
    Demonstrations,
    demonstrate,
    load_demonstrations,
    save_demonstrations,
)
from bilevel.imitation.discriminator import Discriminator, Imitation, pairs
from bilevel.imitation.experts import MountainCarExpert
from bilevel.imitation.imitator import Imitator
from bilevel.imitation.policies import CategoricalPolicy, GaussianPolicy, Policy, Value, mlp
from bilevel.imitation.rollouts import Rollout, Sampler, make_envs
from bilevel.imitation.trpo import TRPO, TrustRegionStep

__all__ = [
    "TRPO",
    "CategoricalPolicy",
    "Demonstrations",
    "Discriminator",
    "GaussianPolicy",
    "Imitation",
    "Imitator",
    "MountainCarExpert",
    "Policy",
    "Rollout",
    "Sampler",
    "TrustRegionStep",
    "Value",
    "demonstrate",
    "generalized_advantages",
    "load_demonstrations",
    "make_envs",
    "mlp",
    "pairs",
    "save_demonstrations",
]
