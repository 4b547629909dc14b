"""Activations that are computed again, against those that are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError
from bilevel.robustness import Trunk, build_model, recompute_activations
from tests.robustness.networks.two_step import BATCH, make, play


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating", "extragradient"])
@pytest.mark.parametrize("leader_mode", ["eval", "train"])
def test_recomputed_activations_change_nothing(schedule: str, leader_mode: Any) -> None:
    """Statistics of batch normalisation included, which are taken in once a step."""
    kept, again = make(schedule), make(schedule)
    recompute_activations(again.leader.model)
    for game in (kept, again):
        game.solver.leader_mode = leader_mode
    result = play(again)
    for name, value in play(kept).items():
        assert torch.equal(value, result[name]), name


def test_recomputed_activations_take_less_memory() -> None:
    sizes = []
    for again in (False, True):
        model = build_model("wrn-10-1", channels=1, classes=10)
        if again:
            recompute_activations(model)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(BATCH.x).sum()
        sizes.append(sum(kept.values()))
    assert sizes[1] < sizes[0] / 2


def test_a_network_whose_blocks_are_not_known() -> None:
    with pytest.raises(BilevelError, match=r"Linear has no Trunk: .*build its layers"):
        recompute_activations(nn.Linear(1, 1))
    network = nn.Sequential(Trunk(nn.Linear(1, 1)))
    recompute_activations(network)
    assert network[0]._recompute
