"""Captured steps, as far as a processor shows them; ``tests/test_accelerator.py`` runs them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bilevel import BilevelError, distributed
from bilevel.robustness import Trainer
from bilevel.robustness.training.captured import check_cuda_graphs


def test_a_processor_has_no_cuda_graphs(build: Callable[..., Trainer]) -> None:
    with pytest.raises(BilevelError, match="the device is cpu: CUDA graphs are for GPUs"):
        build(cuda_graphs=True)


def test_communication_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cpu, "CUDAGraph", object, raising=False)
    with pytest.raises(BilevelError, match="2 processes train together"):
        check_cuda_graphs(torch.device("cpu"))
