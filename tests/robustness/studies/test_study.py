"""`Study`: what its methods share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bilevel.robustness import trained
from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.study import Study


def test_the_attacker_is_scaled_once_and_draws_no_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[nn.Module] = []

    def width(attacker: object, classifier: nn.Module, shape: Any) -> int:
        counted.append(classifier)
        return 12

    monkeypatch.setattr(trained, "fitting_width", width)
    args = TrainingArguments(fast=True, smoke=True, attacker="wide", out=tmp_path)
    before = torch.get_rng_state()
    study = Study(args, ["grad-l2l", "two-step-l2l"])
    assert torch.equal(torch.get_rng_state(), before)
    assert [study.about(name).attacker.width for name in study.names] == [12, 12]
    assert len(counted) == 1
