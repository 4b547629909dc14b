"""What is told where memory ends, and of a classifier for other images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bilevel import BilevelError
from bilevel.robustness import Attacker, explain_out_of_memory, fitting_width
from bilevel.robustness.networks.failures import explain_misfit

ENDS = pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)


@ENDS
def test_out_of_memory_tells_what_helps(error: Exception) -> None:
    told = "batches of 128 images: .*--recompute or --cuda-graphs off, .* smaller --batch-size"
    with pytest.raises(BilevelError, match=told), explain_out_of_memory(128):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(128):
        raise RuntimeError("shapes differ")


@ENDS
def test_memory_that_ends_is_no_misfit(error: Exception) -> None:
    with pytest.raises(type(error)), explain_misfit((1, 8, 8)):
        raise error


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Flatten(), nn.Linear(60, 10)], "cannot be multiplied"),
        ([nn.Conv2d(3, 1, 1)], "3 channels, but got 1 channels"),
        ([nn.Flatten(), nn.Linear(64, 10).half()], "Float and Half"),
    ],
)
def test_an_attacker_is_fitted_to_a_classifier_of_the_images(
    layers: list[nn.Module], reason: str
) -> None:
    told = rf"float32 images of \(1, 8, 8\) \(.*{reason}.*\): .* that it is made for"
    with pytest.raises(BilevelError, match=told):
        fitting_width(Attacker(), nn.Sequential(*layers), (1, 8, 8))
