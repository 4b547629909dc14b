"""Data hyper-cleaning as a bilevel problem: learn sample weights by the validation loss.

    min over θ   CE(f_y*(held-out images), their labels)
    s.t.         y* = argmin over y of mean_i σ(θ_i) CE(f_y(x_i), label_i) + decay/2 ‖y‖²

Franceschi et al., "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML 2017,
Sec. 5.1. Some of the training labels are wrong; the held-out ones are correct.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bilevel import FollowerProblem, LeaderProblem
from bilevel.robustness import Batch


class Images(NamedTuple):
    """The batch of the game.

    Attributes:
        train: Training images; some labels are wrong.
        validation: Held-out images; all labels are correct.
    """

    train: Batch
    validation: Batch


class Training(FollowerProblem):
    """The follower: a network trained on weighted samples; y is its parameters by name.

    Args:
        network: The network; its parameters are the starting point.
        decay: Factor of ½‖y‖² in the loss, which makes the minimum of a linear network unique.
    """

    sense = "min"

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay

    def init(self, batch: Images) -> dict[str, Tensor]:
        """The network's initial parameters."""
        return {name: leaf.detach() for name, leaf in self.network.named_parameters()}

    def predict(self, y: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits of the network with parameters ``y``."""
        logits: Tensor = functional_call(self.network, y, (x,))
        return logits

    def objective(self, leader: Any, y: dict[str, Tensor], batch: Images) -> Tensor:
        """The training loss, weighted by the leader."""
        logits = self.predict(y, batch.train.x)
        losses = F.cross_entropy(logits, batch.train.y, reduction="none")
        squares = torch.stack([leaf.square().sum() for leaf in y.values()])
        return (leader.logits.sigmoid() * losses).mean() + self.decay / 2 * squares.sum()


class SampleWeights(LeaderProblem):
    """The leader: a weight σ(θ_i) for each training sample, learned by the validation loss.

    Args:
        follower: The training on the weighted samples.
        count: Number of samples; the initial weights are ½.
    """

    def __init__(self, follower: Training, count: int) -> None:
        super().__init__()
        self.follower = follower
        self.logits = nn.Parameter(torch.zeros(count))

    @property
    def weights(self) -> Tensor:
        """The weights in [0, 1], detached, ``(N,)``."""
        return self.logits.detach().sigmoid()

    def loss(self, y: dict[str, Tensor], batch: Images) -> Tensor:
        """The validation loss of the trained network."""
        return F.cross_entropy(self.follower.predict(y, batch.validation.x), batch.validation.y)
