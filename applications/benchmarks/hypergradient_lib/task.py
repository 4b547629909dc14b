"""The task: one step of hyper-cleaning, differentiated with respect to 1,000 sample weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from hyper_cleaning_lib.data import load
from hyper_cleaning_lib.problem import Images, SampleWeights, Training
from torch import Tensor

from bilevel.robustness import Batch

Weights = dict[str, Tensor]


class Logits(NamedTuple):
    """What the follower reads of the leader; a class that torch.compile can trace."""

    logits: Tensor


@dataclass(frozen=True)
class Task:
    """Leader, follower and data; the follower is solved by ``steps`` steps of gradient descent.

    Args:
        leader: The sample weights.
        follower: The training of the network.
        images: Training and validation images.
        steps: T.
        step: The step size.
    """

    leader: SampleWeights
    follower: Training
    images: Images
    steps: int
    step: float

    @property
    def theta(self) -> Tensor:
        """The leader's parameter."""
        return self.leader.logits

    def start(self) -> Weights:
        """The network's initial parameters, which require gradients."""
        return {name: leaf.requires_grad_() for name, leaf in self.follower.init(None).items()}

    def inner(self, y: Weights, theta: Tensor) -> Tensor:
        """The follower's objective."""
        return self.follower.objective(Logits(theta), y, self.images)

    def outer(self, y: Weights) -> Tensor:
        """The leader's loss."""
        return self.leader.loss(y, self.images)

    def named(self, leaves: Sequence[Tensor]) -> Weights:
        """A sequence of the network's parameters as a dict."""
        return dict(zip(self.follower.init(None), leaves, strict=True))

    def double(self) -> Task:
        """The same in float64."""
        leader = copy.deepcopy(self.leader).double()
        leader.follower.network.double()
        train, held_out = (Batch(x.double(), y) for x, y in self.images)
        return replace(
            self, leader=leader, follower=leader.follower, images=Images(train, held_out)
        )


def make_task(model: str, steps: int, seed: int) -> Task:
    """The task on scikit-learn's digits, two fifths of the labels wrong.

    Args:
        model: ``linear`` (650 parameters) or ``mlp`` (64–256–10).
        steps: T.
        seed: Of labels, split, network and sample weights, which are random.
    """
    data = load("digits", seed=seed)
    torch.manual_seed(seed)
    follower = Training(data.network(model), decay=1e-2)
    leader = SampleWeights(follower, len(data.images.train.y))
    torch.nn.init.normal_(leader.logits)
    return Task(leader, follower, data.images, steps, step=0.5)
