"""Metrics of learned weights: detection of wrong labels, and accuracy after training with them."""

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
    """The ROC curve of detecting wrong labels by small weights.

    Args:
        false_positives: Fraction of the correct labels among the k smallest weights, k = 0, …, N.
        true_positives: Fraction of the wrong labels among them.
    """

    false_positives: Tensor
    true_positives: Tensor

    @property
    def auc(self) -> float:
        """P(a wrong label has less weight than a correct one); ½ is chance."""
        return float(torch.trapezoid(self.true_positives, self.false_positives))


def roc(weights: Tensor, wrong: Tensor) -> Roc:
    """The ROC curve of learned weights.

    Args:
        weights: ``(N,)``.
        wrong: Which labels are wrong, ``(N,)`` bool; neither all nor none.
    """
    ascending, order = weights.sort()
    ordered = wrong[order].double()
    last = torch.ones_like(wrong)  # of equal weights, which a threshold cannot tell apart
    last[:-1] = ascending[1:] != ascending[:-1]
    rates = []
    for kind in (1 - ordered, ordered):
        counted = torch.cat([kind.new_zeros(1), kind.cumsum(0)[last]])
        rates.append((counted / counted[-1]).cpu())
    return Roc(*rates)


def found(weights: Tensor, wrong: Tensor) -> dict[str, float]:
    """Detection at the threshold ½, the initial weight.

    Args:
        weights: ``(N,)``.
        wrong: Which labels are wrong, ``(N,)`` bool.

    Returns:
        The fractions of the wrong (``found``) and of the correct labels (``false_alarms``) with
        less weight.
    """
    flagged = weights < 0.5
    return {
        "found": float(flagged[wrong].double().mean()),
        "false_alarms": float(flagged[~wrong].double().mean()),
    }


def train(leader: SampleWeights, data: Corrupted, step: float, steps: int) -> nn.Module:
    """Trains a network from scratch on weighted samples.

    Args:
        leader: The weights.
        data: The images.
        step: Step size of gradient descent.
        steps: Number of steps.

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
    """The test accuracy of a network.

    Args:
        network: The network.
        data: The images.
    """
    return float((network(data.test.x).argmax(1) == data.test.y).double().mean())
