"""Captured steps, as far as a processor shows them; ``test_accelerator.py`` takes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bilevel import BilevelError, distributed, games
from bilevel.captured import CapturedStep


def test_a_processor_has_no_cuda_graphs() -> None:
    game = games.begin(games.bilinear(), 1.0, 1.0, lr=0.1)
    with pytest.raises(BilevelError, match="the device is cpu: CUDA graphs are for GPUs"):
        CapturedStep(game)


def test_communication_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "CUDAGraph", object, raising=False)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    game = games.begin(games.bilinear(), 1.0, 1.0, lr=0.1)
    with pytest.raises(BilevelError, match="2 processes train together"):
        CapturedStep(game)


def test_tensors_in_other_objects_would_not_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "CUDAGraph", object, raising=False)
    step = CapturedStep(games.begin(games.bilinear(), 1.0, 1.0, lr=0.1))
    with pytest.raises(BilevelError, match="the batch holds a SimpleNamespace"):
        step((torch.zeros(2), SimpleNamespace(x=torch.zeros(2))))
