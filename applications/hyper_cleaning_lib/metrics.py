"""What learned weights are worth: the wrong labels they find, and what is trained with them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bilevel import Iterative
from bilevel.updates import Gradient
from hyper_cleaning_lib.data import Corrupted
from hyper_cleaning_lib.problem import SampleWeights


@dataclass(frozen=True)
class Roc:
    """What is found of the wrong labels, and at the price of how many right ones.

    Args:
        false: Share of the right labels among the k lightest samples, k = 0, …, N.
        found: Share of the wrong labels among them.
    """

    false: Tensor
    found: Tensor

    @property
    def area(self) -> float:
        """How often a wrong label weighs less than a right one; ½ by chance."""
        return float(torch.trapezoid(self.found, self.false))


def roc(weights: Tensor, wrong: Tensor) -> Roc:
    """The samples called wrong from the lightest on.

    Args:
        weights: ``(N,)``.
        wrong: Which labels are, ``(N,)`` bool; some are and some are not.
    """
    ordered = wrong[weights.argsort(stable=True)].double()
    shares = []
    for kind in (1 - ordered, ordered):
        counted = torch.cat([kind.new_zeros(1), kind.cumsum(0)])
        shares.append((counted / counted[-1]).cpu())
    return Roc(*shares)


def found(weights: Tensor, wrong: Tensor) -> dict[str, float]:
    """The labels that weigh less than ½, where all began.

    Args:
        weights: ``(N,)``.
        wrong: Which labels are, ``(N,)`` bool.

    Returns:
        The share of the wrong labels among them, and of the right ones.
    """
    light = weights < 0.5
    return {
        "found": float(light[wrong].double().mean()),
        "false_alarms": float(light[~wrong].double().mean()),
    }


def train(leader: SampleWeights, data: Corrupted, step: float, steps: int) -> nn.Module:
    """A network trained from the start on weighed samples.

    Args:
        leader: Their weights.
        data: The images.
        step: Size of a step of gradient descent.
        steps: How many.

    Returns:
        The network.
    """
    solver = Iterative(Gradient(step), steps)
    y = solver.solve(leader.follower, leader, data.images, evaluate=False).value
    assert isinstance(y, dict)
    network = copy.deepcopy(leader.follower.network)
    network.load_state_dict(y)
    return network


def accuracy(network: nn.Module, data: Corrupted) -> float:
    """Of a network on the test images.

    Args:
        network: The network.
        data: The images.
    """
    return float((network(data.test.x).argmax(1) == data.test.y).double().mean())
