"""The Square Attack stops for images that it has broken, where the loss tells which those are."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bilevel import Solution, ZeroSum
from bilevel.robustness import L2, Linf, Perturbation, Square
from bilevel.robustness.threats.losses import (
    Loss,
    Targeted,
    dlr,
    margin,
    targeted_dlr,
    targeted_margin,
)

BOTH = pytest.mark.parametrize(("threat", "eps"), [(Linf, 0.1), (L2, 0.5)])


class Noting(nn.Module):
    """A linear classifier of four classes, which notes its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 4, bias=False)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.layer(x.flatten(1) - 0.5))
        return self.seen[-1]


def labelled(model: Noting, count: int = 60) -> Targeted:
    """Images, a tenth of them misclassified; the target is the second class."""
    x = torch.rand(count, 1, 6, 6)
    ranked = model(x).argsort(1, descending=True)
    model.seen.clear()
    wrong = torch.arange(count) % 10 == 0
    return Targeted(x, torch.where(wrong, ranked[:, 3], ranked[:, 0]), ranked[:, 1])


def attacked(model: Noting, follower: Perturbation, batch: Any) -> Solution:
    """The answer of 36 queries."""
    return Square(36).solve(follower, ZeroSum(model, follower), batch, evaluate=False)


@BOTH
@pytest.mark.parametrize("loss", [margin, dlr, targeted_dlr, targeted_margin])
def test_images_leave_once_they_are_misclassified(
    threat: type[Perturbation], eps: float, loss: Loss
) -> None:
    """At the start and every ten queries; they keep the point that broke them."""
    model = Noting()
    batch = labelled(model)
    solution = attacked(model, threat(eps, loss=loss), batch)
    assert solution.evaluations == len(model.seen) == 36
    left, rows = [], torch.arange(60)
    for first, last in ((0, 1), (1, 11), (11, 21), (21, 31), (31, 36)):
        part = Targeted(*(field[rows] for field in batch))
        gains = torch.stack([loss(logits, part) for logits in model.seen[first:last]])
        rows = rows[(gains <= 0).all(0)]
        left.append(len(rows))
    assert 60 > left[0] > left[1] >= left[2] >= left[3] > 0
    broken = loss(model(batch.x + solution.value), batch) > 0
    assert (~broken).nonzero().flatten().tolist() == rows.tolist()


def test_it_ends_when_all_images_are_misclassified() -> None:
    """An image that is wrong at the start is left as it is."""
    model = Noting()
    batch = labelled(model)
    batch = batch._replace(y=batch.target)
    solution = attacked(model, Linf(0.1, loss=margin), batch)
    assert solution.evaluations == len(model.seen) == 1
    assert not solution.value.any()


def test_the_statistics_are_those_of_all_images() -> None:
    model = Noting()
    batch, follower = labelled(model), Linf(0.1, loss=margin)
    solution = Square(36).solve(follower, ZeroSum(model, follower), batch)
    for name, images in (("before", batch.x), ("after", batch.x + solution.value)):
        expected = margin(model(images), batch).mean()
        torch.testing.assert_close(solution.stats[f"objective_{name}"], expected)


def raised(logits: Tensor, batch: Any) -> Tensor:
    """A loss that is positive everywhere."""
    return margin(logits, batch) + 100


class Own(Linf):
    """Its objective is positive everywhere."""

    def objective(self, leader: Any, y: Any, batch: Any) -> Tensor:
        return super().objective(leader, y, batch) + 100


class Named(NamedTuple):
    """Images with something else than tensors."""

    x: Tensor
    y: Tensor
    names: list[str]


@pytest.mark.parametrize(
    "follower",
    [Linf(0.1), Linf(0.1, loss=raised), Own(0.1, loss=margin)],
    ids=["cross entropy", "own loss", "own objective"],
)
def test_all_images_get_all_queries_where_the_sign_does_not_tell(follower: Linf) -> None:
    model = Noting()
    batch = labelled(model)
    assert attacked(model, follower, batch).evaluations == 36
    assert [len(logits) for logits in model.seen] == [60] * 36


def test_all_images_get_all_queries_in_a_batch_that_cannot_be_divided() -> None:
    model = Noting()
    x, y, _ = labelled(model)
    attacked(model, Linf(0.1, loss=margin), Named(x, y, ["digit"] * 60))
    assert [len(logits) for logits in model.seen] == [60] * 36
