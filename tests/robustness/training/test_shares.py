"""The images of a batch that each process computes, and their weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bilevel.distributed import job
from bilevel.robustness.training import shares

PLAIN, OWN, SYNCHRONISED = nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)), nn.SyncBatchNorm(2)


@pytest.mark.parametrize(
    ("networks", "batch_size", "least"),
    [
        ([PLAIN], 99, 1),
        ([PLAIN, SYNCHRONISED], 99, 1),
        ([PLAIN, OWN], 8, 2),
        ([PLAIN, OWN], 7, 1),  # else each batch would be computed four times
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 10])
def test_the_images_of_a_batch_count_equally(
    monkeypatch: pytest.MonkeyPatch,
    networks: list[nn.Module],
    batch_size: int,
    least: int,
    count: int,
) -> None:
    """In synchronised normalisation by their number, in the gradient by the weights."""
    times, weights = [0] * count, [0.0] * count
    for module in (job, shares.distributed):
        monkeypatch.setattr(module, "world_size", lambda: 4)
    shared = shares.Shares(networks, batch_size)
    for rank in range(4):
        monkeypatch.setattr(job, "rank", lambda rank=rank: rank)
        images = range(count)[shared.images(count)]
        assert len(images) >= min(count, least)
        for image in images:
            times[image] += 1
            weights[image] += shared.weight(count) / len(images)
    assert times == [4 if count < 4 * least else 1] * count
    assert weights == pytest.approx([1 / count] * count)


def test_processes_runs_and_resumed_runs_draw_numbers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    for seed, steps, size, rank in [
        (0, 0, 2, 0), (0, 0, 2, 1), (0, 7, 2, 0), (0, 0, 3, 0), (1, 0, 2, 0), (0, 0, 2, 0),
    ]:  # fmt: skip
        monkeypatch.setattr(shares.distributed, "world_size", lambda size=size: size)
        monkeypatch.setattr(shares.distributed, "rank", lambda rank=rank: rank)
        shares.seed_process(seed, steps)
        drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 5
    assert drawn[0] == drawn[-1]
