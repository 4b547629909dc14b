"""`Study`: what its methods share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bilevel import BilevelError, Detached, Unrolled, ZeroSum
from bilevel.distributed import collectives
from bilevel.robustness import trained
from bilevel.robustness.studies import study as module
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


def test_processes_that_are_given_other_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives, "all_gather", lambda own: [own, {**own, "lr": 0.5}])
    with pytest.raises(BilevelError, match="processes 0 and 1 differ in lr: "):
        Study(TrainingArguments(out=tmp_path), ["pgm"])


def test_all_networks_are_compiled_if_they_are_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(module, "compile_network", compiled.append)
    study = Study(TrainingArguments(compile="on", out=tmp_path), ["grad-l2l"])
    model, solver = study.networks(study.about("grad-l2l"))
    assert compiled == [model, *solver.children()]


def test_a_game_is_the_zero_sum_one_of_its_options_and_of_new_equal_networks(
    tmp_path: Path,
) -> None:
    study = Study(TrainingArguments(smoke=True, epsilon=0.1, out=tmp_path), ["two-step-l2l"])
    about = study.about("two-step-l2l")
    games = [study.game(about, adjoint=adjoint()) for adjoint in (Detached, Unrolled)]
    assert [type(game.adjoint) for game in games] == [Detached, Unrolled]
    first, second = (game.leader for game in games)
    assert isinstance(first, ZeroSum)
    assert (first.follower, first.follower.eps) == (games[0].follower, 0.1)
    assert first.model is not second.model
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
