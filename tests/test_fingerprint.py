"""A checksum changes with any value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


class Packed(torch.nn.Module):
    """Keeps its weight as quantised layers do, in a tuple of the extra state."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._packed = (weight, None)

    def get_extra_state(self) -> dict[str, object]:
        return {"packed": self._packed}


def test_weights_count_that_are_packed_in_the_state() -> None:
    assert fingerprint(Packed(torch.zeros(3))) != fingerprint(Packed(torch.ones(3)))
    assert fingerprint(Packed(torch.ones(3))) == fingerprint(Packed(torch.ones(3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_networks_of_other_weights_differ() -> None:
    quantised = [
        torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        for _ in range(2)
    ]
    assert len({*map(fingerprint, quantised)}) == 2


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_sparse_buffer_counts(layout: torch.layout) -> None:
    one, same, moved, other = (
        values.to_sparse(layout=layout)
        for values in (torch.eye(3), torch.eye(3), torch.eye(3).roll(1, 0), 2 * torch.eye(3))
    )
    assert fingerprint(one) == fingerprint(same)
    assert len({*map(fingerprint, (one, moved, other))}) == 3
