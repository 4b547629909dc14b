"""Imitation learning: policies, TRPO, rollouts, experts, and the discriminator of GAIL.

CategoricalPolicy, GaussianPolicy    stochastic policies over discrete and continuous actions
Value                                the state-value function V(s)
make_envs, Sampler, Rollout          vectorised environments and the trajectories collected in them
demonstrate, Demonstrations          episodes of an expert; MountainCarExpert needs no training
Discriminator                        the follower: classifies pairs as the policy's or the expert's
Imitator                             the leader: a policy rewarded by the discriminator
generalized_advantages               generalized advantage estimation (GAE)
TRPO                                 the optimizer of a policy: the ``leader_opt`` of a game
Trainer                              the training loop: rollout, step of the game, value fit
"""

from bilevel.imitation.advantages import generalized_advantages
from bilevel.imitation.cloning import clone
from bilevel.imitation.demonstrations import Demonstrations, demonstrate
from bilevel.imitation.discriminator import Discriminator, ImitationBatch, pairs
from bilevel.imitation.environments import Task, make_envs
from bilevel.imitation.experts import MountainCarExpert, train_expert, trpo_step
from bilevel.imitation.imitator import Imitator, surrogate
from bilevel.imitation.networks import Standardize, in_numpy, mlp
from bilevel.imitation.policies import CategoricalPolicy, GaussianPolicy, Policy
from bilevel.imitation.rollouts import Rollout, Sampler
from bilevel.imitation.storage import (
    load_demonstrations,
    load_minari,
    save_demonstrations,
    save_minari,
)
from bilevel.imitation.trainer import Trainer
from bilevel.imitation.trpo import TRPO, TrustRegionStep
from bilevel.imitation.values import Value

__all__ = [
    "TRPO",
    "CategoricalPolicy",
    "Demonstrations",
    "Discriminator",
    "GaussianPolicy",
    "ImitationBatch",
    "Imitator",
    "MountainCarExpert",
    "Policy",
    "Rollout",
    "Sampler",
    "Standardize",
    "Task",
    "Trainer",
    "TrustRegionStep",
    "Value",
    "clone",
    "demonstrate",
    "generalized_advantages",
    "in_numpy",
    "load_demonstrations",
    "load_minari",
    "make_envs",
    "mlp",
    "pairs",
    "save_demonstrations",
    "save_minari",
    "surrogate",
    "train_expert",
    "trpo_step",
]
