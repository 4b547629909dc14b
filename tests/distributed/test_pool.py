"""`Pool`: the sum over the processes, as far as one process can see it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from bilevel.distributed import Pool


def test_a_loss_of_half_precision_does_not_round_the_gradients(monkeypatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat.mul_(2))
    loss, gradient = torch.tensor(1.0, dtype=torch.float16), torch.tensor([1e-9, 1.2346])
    Pool().all_reduce([loss, gradient])
    assert loss.item() == 2
    assert gradient.tolist() == pytest.approx([2e-9, 2.4692], rel=1e-6)
