"""What tests of docs/algorithms.md share: the page, its names, and the loop of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import bilevel
from bilevel import updates
from bilevel.robustness import L1, L2, Batch, Linf

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
NAMES = {**vars(updates), **vars(bilevel), "Linf": Linf, "L2": L2, "L1": L1}
Move = Callable[[nn.Module, Tensor, Batch], Tensor]


def batches() -> Iterator[Batch]:
    torch.manual_seed(1)
    for _ in range(3):
        yield Batch(torch.rand(8, 1, 6, 6).double(), torch.randint(3, (8,)))


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
