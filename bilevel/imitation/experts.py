"""Experts who need no training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical

from bilevel.imitation.policies import Policy


class MountainCarExpert(Policy):
    """Pushes along the velocity, which is all that ``MountainCar-v0`` takes: about −120 an episode.

    Example:
        >>> MountainCarExpert().act(torch.tensor([[-0.5, -0.01], [-0.5, 0.02]]))[0]
        tensor([0, 2])
    """

    def forward(self, observations: Tensor) -> Categorical:
        """All the probability on one of left (0) and right (2)."""
        right = observations[..., 1] >= 0
        still = torch.zeros_like(observations[..., 0])
        return Categorical(torch.stack([~right, still, right], -1), validate_args=False)
