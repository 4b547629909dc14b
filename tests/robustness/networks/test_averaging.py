"""`EMA` against the recursion written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel import BilevelError
from bilevel.robustness import EMA
from tests.problems import BatchNormNet


@pytest.mark.parametrize("decay", [0.5, 0.995])
def test_weights_and_statistics_follow_the_recursion(decay: float) -> None:
    network = BatchNormNet()
    averaged = EMA(network, decay)
    expected: dict[str, Tensor] = {}
    for t in range(30):
        network(torch.rand(5, 1, 4, 4))  # moves the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        averaged.update_parameters(network)
        d = min(decay, (1 + t) / (10 + t))
        for name, value in network.state_dict().items():
            if t == 0 or name == "calls" or name.endswith("num_batches_tracked"):
                expected[name] = value.clone()
            else:
                expected[name] = d * expected[name] + (1 - d) * value
    torch.testing.assert_close(averaged.module.state_dict(), expected)


def test_a_mask_is_copied() -> None:
    """Of infinite numbers there is no mean."""
    network = BatchNormNet()
    network.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    averaged = EMA(network, 0.9)
    for _ in range(3):
        averaged.update_parameters(network)
    assert torch.equal(averaged.module.mask, network.mask)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5, float("nan")])
def test_a_decay_that_is_no_weight_is_refused(decay: float) -> None:
    with pytest.raises(BilevelError, match=rf"decay is {decay}: .* between 0 and 1"):
        EMA(BatchNormNet(), decay)


def test_what_never_changes_stays_bit_for_bit() -> None:
    network = BatchNormNet()
    averaged = EMA(network, 0.9)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(10):
        averaged.update_parameters(network)
    for name, value in averaged.module.state_dict().items():
        assert torch.equal(value, before[name]), name
