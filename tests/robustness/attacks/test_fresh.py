"""`FreshAttack`: the images that its attacker is trained on."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bilevel import Bilevel, BilevelError, pgm
from bilevel.robustness import Attacker, Batch, FreshAttack, ImageSet, Linf, make_solver


def test_each_epoch_has_all_images_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def step(game: Bilevel, batch: Batch, step: Any = Bilevel.step) -> Any:
        seen.extend(batch.y.tolist())
        return step(game, batch)

    monkeypatch.setattr(Bilevel, "step", step)
    images = ImageSet(torch.zeros(8, 1, 2, 2).byte(), torch.arange(8), tuple("abcdefgh"))
    make = partial(
        make_solver, "grad-l2l", eps=0.1, channels=1, attacker=Attacker("two-layer", width=4)
    )
    attack = FreshAttack("it", Linf(0.1), make, images, steps=4, batch_size=4)
    attack.prepare(nn.Sequential(nn.Flatten(), nn.Linear(4, 8)))
    first, second = seen[:8], seen[8:]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_no_images_to_train_on() -> None:
    """Their epochs, of no batch, would never end."""
    images = ImageSet(torch.zeros(0, 1, 2, 2).byte(), torch.zeros(0).long(), ("a", "b"))
    with pytest.raises(BilevelError, match=r"image set is empty: .*give one or more"):
        FreshAttack("it", Linf(0.1), lambda: pgm(0.1, 1), images)


@pytest.mark.parametrize(("name", "number"), [("steps", 0), ("batch_size", -1)])
def test_an_attacker_that_is_not_trained_is_no_attack(name: str, number: Any) -> None:
    images = ImageSet(torch.zeros(2, 1, 2, 2).byte(), torch.arange(2), ("a", "b"))
    with pytest.raises(BilevelError, match=rf"{name} is {number}: .* give 1, 2"):
        FreshAttack("it", Linf(0.1), lambda: pgm(0.1, 1), images, **{name: number})


def test_an_attacker_without_parameters_has_nothing_to_train() -> None:
    images = ImageSet(torch.zeros(2, 1, 2, 2).byte(), torch.arange(2), ("a", "b"))
    attack = FreshAttack("it", Linf(0.1), lambda: pgm(0.1, 1), images)
    with pytest.raises(BilevelError, match=r"it has nothing to train: .* attack with SolverAttack"):
        attack.prepare(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
