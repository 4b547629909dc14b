"""`Pool`: what is summed, and how precisely."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from bilevel.distributed import Pool


def test_a_loss_of_half_precision_rounds_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat.mul_(2))
    torch.manual_seed(0)
    loss = torch.tensor(0.5, dtype=torch.bfloat16)
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    gradients = [images, torch.rand(3, 2).T, torch.rand(()), torch.rand(2, 0)]
    expected = [2 * gradient for gradient in gradients]
    Pool().all_reduce([loss, *gradients])
    assert loss.item() == 1.0
    assert all(map(torch.equal, gradients, expected))
