"""The control kit: policies, and the trust region method that moves them.

CategoricalPolicy, GaussianPolicy    stochastic policies of discrete and continuous actions
Value                                what a state is worth
TRPO                                 moves a policy: the ``leader_opt`` of an imitation game
"""

from bilevel.imitation.policies import CategoricalPolicy, GaussianPolicy, Policy, Value, mlp
from bilevel.imitation.trpo import TRPO, TrustRegionStep

__all__ = [
    "TRPO",
    "CategoricalPolicy",
    "GaussianPolicy",
    "Policy",
    "TrustRegionStep",
    "Value",
    "mlp",
]
