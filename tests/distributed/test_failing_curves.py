"""An attack that fails in one process is a curve's problem in all, and they go on together."""

from __future__ import annotations

from tests.jobs import launch

SCRIPT = """
import torch
from torch import nn

from bilevel import distributed
from bilevel.robustness import ImageSet, accuracy, accuracy_by_epsilon, accuracy_by_iterations

distributed.join()


class Picky(nn.Module):
    def forward(self, x):
        if x.requires_grad and distributed.rank() == 1:
            raise KeyError("lost")
        score = x.flatten(1).mean(1) - 0.5
        return torch.stack([-score, score], 1)


images = ImageSet(torch.full((8, 1, 2, 2), 200).byte(), torch.ones(8).long(), ("dark", "light"))
for measure in (accuracy_by_epsilon, accuracy_by_iterations):
    assert measure(Picky(), images, 0.1).problem == "KeyError: 'lost'"
    assert accuracy(Picky(), images) == 1
distributed.leave()
"""


def test_all_processes_go_on_after_the_failure_of_one() -> None:
    for ended in launch("-c", SCRIPT, timeout=60):
        assert ended.status == 0, ended.err
