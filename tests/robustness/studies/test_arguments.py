"""`TrainingArguments`: augmentation, compilation and loading of images."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from bilevel import (
    Alternating,
    BilevelError,
    Lookahead,
    Optimistic,
    Schedule,
    Simultaneous,
    distributed,
)
from bilevel.experiment import commandline
from bilevel.robustness import Augment
from bilevel.robustness.studies.arguments import TrainingArguments
from tests.images import write_tree

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Augment(4, flip=True)),
        ("--flip False", Augment(4, flip=False)),
        ("--padding 0", Augment(0, flip=True)),
        ("--flip False --padding 0", None),
    ],
)
def test_augmentation_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, words: str, expected: Augment | None
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--dataset", "folder", *words.split()])
    assert commandline.read(TrainingArguments).recipe().augment == expected


@pytest.mark.parametrize(
    ("given", "processes", "compiles"),
    [
        ({}, 1, True),
        ({}, 2, True),
        ({"sync_batchnorm": True}, 1, True),
        ({"sync_batchnorm": True}, 2, False),
        ({"smoke": True}, 1, False),
        ({"dataset": "digits"}, 1, False),
        ({"dataset": "digits", "compile": "on"}, 1, True),
        ({"compile": "off"}, 1, False),
    ],
)
def test_networks_are_compiled_where_that_is_worth_its_while(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], processes: int, compiles: bool
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    args = replace(TrainingArguments(dataset="cifar10"), **given)
    assert args.compiles(CUDA) == compiles
    assert args.compiles(CPU) == (args.compile == "on")


@pytest.mark.parametrize(
    ("given", "schedule", "processes", "captures"),
    [
        ({}, Simultaneous(), 1, True),
        ({"smoke": True}, Alternating(), 1, True),
        ({}, Optimistic(), 1, False),
        ({}, Lookahead(), 1, False),
        ({}, Simultaneous(), 2, False),
        ({"model": "mine:network"}, Simultaneous(), 1, False),
        ({"recompute": True}, Simultaneous(), 1, False),
        ({"model": "mine:network", "cuda_graphs": "on"}, Optimistic(), 2, True),
        ({"cuda_graphs": "off"}, Simultaneous(), 1, False),
    ],
)
def test_steps_are_captured_where_that_is_known_to_be_possible(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    schedule: Schedule,
    processes: int,
    captures: bool,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.0"))
    args = replace(TrainingArguments(dataset="cifar10"), **given)
    assert args.captures(CUDA, schedule) == captures
    assert args.captures(CPU, schedule) == (args.cuda_graphs == "on")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    assert args.captures(CUDA, schedule) == (args.cuda_graphs == "on")


@pytest.mark.parametrize(
    ("count", "counts"),
    [
        (1, "2 train, 0 validation, 0 test"),
        (2, "2 train, 0 validation, 2 test"),
    ],
)
def test_too_few_images(tmp_path: Path, count: int, counts: str) -> None:
    args = TrainingArguments("folder", write_tree(tmp_path / "pets", count=count))
    with pytest.raises(BilevelError, match=rf"images are too few \({counts} images\): .*add"):
        args.load(CPU)
