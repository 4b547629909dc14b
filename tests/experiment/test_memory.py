"""Memory is what tensors take at the peak of a computation."""

from __future__ import annotations

import pytest
import torch

from bilevel.experiment.memory import peak_mib


def test_memory_is_that_of_what_lives_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(2**18) + 1  # two of a MiB each

    peak = peak_mib(one_after_the_other, torch.device("cpu"))
    assert peak == pytest.approx(2, abs=0.01)
