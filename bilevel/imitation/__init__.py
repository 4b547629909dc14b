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
from bilevel.imitation.apprentice import Apprentice
from bilevel.imitation.cloning import clone
from bilevel.imitation.demonstrations import Demonstrations, demonstrate
from bilevel.imitation.discriminator import Discriminator, Imitation, pairs
from bilevel.imitation.environments import Task, make_envs
from bilevel.imitation.experts import MountainCarExpert, improve, train_expert
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
from bilevel.imitation.trpo import TRPO, TrustRegionStep
from bilevel.imitation.values import Value

__all__ = [
    "TRPO",
    "Apprentice",
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
    "Standardize",
    "Task",
    "TrustRegionStep",
    "Value",
    "clone",
    "demonstrate",
    "generalized_advantages",
    "improve",
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
]
