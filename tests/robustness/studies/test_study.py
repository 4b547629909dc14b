"""`Study`: what its methods share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.study import Study
from bilevel.robustness.training import trained


def test_the_attacker_is_scaled_once_to_a_classifier_that_holds_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[bool] = []

    def width(attacker: object, classifier: nn.Module, shape: Any) -> int:
        counted.append(all(p.is_meta for p in classifier.parameters()))
        return 12

    monkeypatch.setattr(trained, "fitting_width", width)
    args = TrainingArguments(fast=True, smoke=True, attacker="wide", out=tmp_path)
    study = Study(args, ["grad-l2l", "two-step-l2l"])
    assert [study.about(name).attacker.width for name in study.names] == [12, 12]
    assert counted == [True]
