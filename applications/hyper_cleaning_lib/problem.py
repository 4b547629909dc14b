"""Data hyper-cleaning as a game: samples are weighed so that what is trained on them is right.

    min over θ   CE(f_y*(held-out images), their labels)
    s.t.         y* = argmin over y of mean_i σ(θ_i) CE(f_y(x_i), label_i) + decay/2 ‖y‖²

Franceschi et al., "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML 2017,
Sec. 5.1. Some of the labels are wrong; those held out are right.
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
    """What both players read.

    Attributes:
        train: Images with labels of which some are wrong.
        validation: Images with labels that are right.
    """

    train: Batch
    validation: Batch


class Training(FollowerProblem):
    """The follower: a network trained on weighed samples; y is its parameters by name.

    Args:
        network: The network, from whose parameters training starts.
        decay: Factor of ½‖y‖² in the loss; what makes the minimum unique for a linear network.
    """

    sense = "min"

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay

    def init(self, batch: Images) -> dict[str, Tensor]:
        """The network's own parameters."""
        return {name: leaf.detach() for name, leaf in self.network.named_parameters()}

    def predict(self, y: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits of the network that has the parameters ``y``."""
        logits: Tensor = functional_call(self.network, y, (x,))
        return logits

    def objective(self, leader: Any, y: dict[str, Tensor], batch: Images) -> Tensor:
        """The training loss; each sample's counts as the leader says."""
        logits = self.predict(y, batch.train.x)
        losses = F.cross_entropy(logits, batch.train.y, reduction="none")
        squares = torch.stack([leaf.square().sum() for leaf in y.values()])
        return (leader.logits.sigmoid() * losses).mean() + self.decay / 2 * squares.sum()


class SampleWeights(LeaderProblem):
    """The leader: how much each training sample counts, judged by images that were held out.

    Args:
        follower: What is trained on the weighed samples.
        count: How many samples; each counts ½ at first.
    """

    def __init__(self, follower: Training, count: int) -> None:
        super().__init__()
        self.follower = follower
        self.logits = nn.Parameter(torch.zeros(count))

    def loss(self, y: dict[str, Tensor], batch: Images) -> Tensor:
        """The validation loss of what was trained."""
        return F.cross_entropy(self.follower.predict(y, batch.validation.x), batch.validation.y)
