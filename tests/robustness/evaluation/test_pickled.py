"""A battery can be sent to another process."""

from __future__ import annotations

import inspect
import pickle
import sys

import pytest
import torch
from torch import nn

from bilevel.robustness import AttackSettings, Battery, ImageSet, Trainer, make_attacks

NAMES = ["pgm-20", "apgd-t", "cw", "square", "random", "autoattack"]


@pytest.fixture
def pickled() -> Battery:
    battery = Battery(make_attacks(NAMES, AttackSettings(0.1, 3)), eps=0.1)
    again: Battery = pickle.loads(pickle.dumps(battery))
    assert [*map(repr, again.attacks)] == [*map(repr, battery.attacks)]
    return again


def test_a_pickled_autoattack_still_says_what_it_needs(
    pickled: Battery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([1.0, 0.0, 0.0])
    images = ImageSet(torch.zeros(3, 1, 2, 2).byte(), torch.zeros(3).long(), ("a", "b", "c"))
    pickled.attacks = pickled.attacks[-1:]
    _, (outcome,) = pickled.run(network, images)
    assert "AutoAttack comes with the package pyautoattack" in outcome.problem


def test_a_trainers_report() -> None:
    report = inspect.signature(Trainer).parameters["report"].default
    assert pickle.loads(pickle.dumps(report)) is report
