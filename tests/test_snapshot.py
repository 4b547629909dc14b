"""`Snapshot`: what runs again sees modules and random numbers as they were, and leaves no trace."""

from __future__ import annotations

import torch
from torch import nn

from bilevel.snapshot import Snapshot


def test_a_block_sees_the_state_as_it_was_and_leaves_it_as_it_is() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, affine=False), nn.Dropout())
    network[1].register_buffer("unset", None)
    images = torch.randn(8, 2)
    network(images)
    torch.manual_seed(3)
    snapshot = Snapshot(network)
    first = network(images)
    statistics = network[0].running_mean.clone()

    network(images)
    network.eval()
    network[0].weight.requires_grad_(False)
    now, random = network[0].running_mean, torch.get_rng_state()
    later = now.clone()
    for _ in range(2):  # the block does not use the snapshot up
        with snapshot.restored():
            assert network.training
            assert network[0].weight.requires_grad
            assert torch.equal(network(images), first)
            assert torch.equal(network[0].running_mean, statistics)
    assert not network.training
    assert not network[0].weight.requires_grad
    assert network[0].running_mean is now
    assert torch.equal(now, later)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_block_computes_in_the_precision_of_the_snapshot() -> None:
    network, x = nn.Linear(2, 2), torch.randn(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        snapshot = Snapshot(network)
    plain = Snapshot(network)
    with snapshot.restored():
        assert network(x).dtype == torch.bfloat16
        with plain.restored():
            assert network(x).dtype == torch.float32
    assert network(x).dtype == torch.float32
