"""Shares of images, on devices that know less than a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import accelerator


@pytest.mark.skipif(not accelerator.AVAILABLE, reason="torch before 2.10")
def test_a_share_on_a_device_without_float64_is_read_at_once(tmp_path: Path) -> None:
    """As MPS."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
from bilevel.robustness.evaluation.tolerance import share

double = torch.Tensor.double

def refuse(tensor):
    if not tensor.is_cpu:
        raise TypeError("the device does not support float64")
    return double(tensor)

torch.Tensor.double = refuse
print(share(torch.tensor([True, False, True]).to("pretend")))
"""
    )
    printed, waits = accelerator.run(script)
    assert float(printed) == 2 / 3
    assert sum(waits.values()) == 1
