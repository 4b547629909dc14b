"""`applications/benchmarks/hypergradient.py`: all ways give one gradient."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.filterwarnings(
    "ignore::bilevel.HypergradientWarning",  # after six steps no follower is at rest
    "ignore::FutureWarning:torchopt",
    "ignore::DeprecationWarning",  # of packages that are measured
)


@pytest.fixture
def task(benchmarks: Callable[[str], ModuleType]) -> Any:
    return benchmarks("hypergradient_lib.task").make_task("linear", 6, 0).double()


@pytest.fixture
def module(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("hypergradient")


def test_all_ways_through_the_steps_give_the_same(module: ModuleType, task: Any) -> None:
    exact = module.UNROLLED["by hand"](task)
    assert exact.shape == (1000,)
    assert exact.norm() > 0
    for name, way in module.UNROLLED.items():
        if "compiled" in name:  # tens of seconds
            continue
        try:
            gradient = way(task)
        except ImportError:
            continue
        torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-12, msg=name)


def test_all_ways_at_the_answer_give_the_same(module: ModuleType, task: Any) -> None:
    """As far as twenty steps of conjugate gradients go."""
    exact = module.baselines.implicit_exact(task)
    assert exact.norm() > 0
    for name, way in module.IMPLICIT.items():
        try:
            gradient = way(task)
        except ImportError:
            continue
        assert float((gradient - exact).norm() / exact.norm()) < 1e-3, name


def test_a_run_with_a_rival_that_is_not_there(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(task: Any) -> Any:
        raise ImportError("No module named 'boat_torch'", name="boat_torch")

    few = {name: module.UNROLLED[name] for name in ("by hand", "bilevel")} | {"BOAT": missing}
    kinds = {("linear", "unrolled"): (few, module.baselines.by_hand)}
    monkeypatch.setattr(module, "KINDS", kinds)
    ended = call(module, "--smoke", "--out", tmp_path)
    assert ended.status == 0, ended.err
    titles = "|  | CPU, ms | ÷ by hand | ÷ TorchOpt | error | peak, MiB |"
    assert titles in ended.out  # those of the documentation
    assert "| BOAT | not installed | – | – | – | – |" in ended.out
    content = json.loads((tmp_path / "results.json").read_text())
    hand, ours, boat = content["results"]
    assert boat == {"model": "linear", "kind": "unrolled", "way": "BOAT", "missing": "boat_torch"}
    assert hand["÷ by hand"] == 1
    assert ours["error"] == pytest.approx(hand["error"], abs=1e-6)
    assert ours["error"] < 1e-5
    assert ours["peak_mib"] == pytest.approx(hand["peak_mib"], rel=0.1)
