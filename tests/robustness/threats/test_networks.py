"""Threat models that hold a network, such as a generator of perturbations: it is not trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bilevel import Iterative, pgm
from bilevel.robustness import Batch, FreshAttack, Threat, accuracy, batches
from bilevel.updates import CoordinateRNN
from tests.images import image_set


class Generated(Threat):
    """δ is what a network makes of a code, which is bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh())

    def init(self, batch: Batch) -> Tensor:
        return batch.x.new_zeros(len(batch.x), 3)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y.clamp(-1, 1)

    def perturbed(self, y: Tensor, batch: Batch) -> Tensor:
        return (batch.x + 0.3 * self.network(y).view_as(batch.x)).clamp(0, 1)


@pytest.fixture
def threat() -> Generated:
    torch.manual_seed(0)
    threat = Generated()
    for _ in range(20):
        threat.network(2 * torch.randn(64, 3))
    return threat


def state(threat: Generated) -> dict[str, Tensor]:
    return copy.deepcopy(threat.network.state_dict())


def classifier() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("training", [True, False])
def test_a_measurement_leaves_it_as_it_was(threat: Generated, training: bool) -> None:
    """It computes in evaluation mode, so that images do not depend on others of their batch."""
    model, images, before = classifier(), image_set(33), state(threat)
    threat.network.train(training)
    shares = {accuracy(model, images, threat, pgm(0.2, 5), batch_size=n) for n in (1, 8, 32, 33)}
    assert len(shares) == 1
    assert threat.network.training is training
    assert all(parameter.requires_grad for parameter in threat.network.parameters())
    torch.testing.assert_close(state(threat), before, rtol=0, atol=0)


def test_a_fresh_attacker_is_trained_against_it_as_it_is(threat: Generated) -> None:
    images, before = image_set(17), state(threat)
    make = lambda: Iterative(CoordinateRNN(scale=0.5), steps=1)  # noqa: E731
    fresh = FreshAttack("fresh", threat, make, images, steps=4, batch_size=8)
    fresh.prepare(classifier())  # the third batch has one image
    torch.testing.assert_close(state(threat), before, rtol=0, atol=0)
    batch = next(batches(images, 17))
    assert not fresh.perturb(classifier(), batch, 0).equal(batch.x)
