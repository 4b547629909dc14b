"""A checksum changes with any value."""

from __future__ import annotations

import torch

from bilevel.fingerprint import fingerprint


def test_a_fingerprint_is_of_all_values() -> None:
    parts = [torch.nn.BatchNorm1d(2), torch.arange(3), torch.zeros(2, 2).byte()]
    sums = {fingerprint(*parts)}
    for value in (parts[0].bias.data, parts[0].running_mean, *parts[1:]):
        value += 1
        sums.add(fingerprint(*parts))
    assert len(sums) == 5
    assert fingerprint(torch.eye(3)[:, :2]) == fingerprint(torch.eye(3, 2))


def test_buffers_count_that_are_not_in_the_state() -> None:
    network = torch.nn.Linear(2, 2)
    network.register_buffer("scale", torch.ones(1), persistent=False)
    before = fingerprint(network)
    network.scale.mul_(2)
    assert fingerprint(network) != before
