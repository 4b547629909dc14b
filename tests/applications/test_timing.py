"""What benchmarks make of the times that they take: ratios the right way round, round by round."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

Load = Callable[[str], ModuleType]
TAKEN = {"raw": [1.0, 2.0, 3.0], "ours": [2.0, 8.0, 4.0]}
"""Seconds of two turns in three rounds."""


def test_turns_take_turns_and_each_round_has_its_own_ratio(benchmarks: Load) -> None:
    timing, now, order = benchmarks("timing"), [0.0], []

    def turn(name: str) -> None:
        now[0] += TAKEN[name][order.count(name)]
        order.append(name)

    turns = {name: partial(turn, name) for name in TAKEN}
    found = timing.interleaved(turns, range(3), clock=lambda: now[0])
    assert found == TAKEN
    assert order == ["raw", "ours"] * 3
    assert timing.ratios(found["ours"], found["raw"]) == [2, 4, pytest.approx(4 / 3)]
    told = timing.spread("ratio", found["ours"], found["raw"])
    assert told == {"ratio": 2, "ratio_min": pytest.approx(4 / 3), "ratio_max": 4}


def test_a_hypergradient_is_compared_with_that_by_hand(
    benchmarks: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, now = benchmarks("hypergradient"), [0.0]

    def implementation(seconds: float, gradient: float) -> Callable[[Any], torch.Tensor]:
        def run(task: Any) -> torch.Tensor:
            now[0] += seconds
            return torch.full((4,), gradient)

        return run

    monkeypatch.setattr(module, "time", SimpleNamespace(process_time=lambda: now[0]))
    ways = {"by hand": implementation(2, 1.0), "bilevel": implementation(3, 1.5)}
    hand, ours = module.measure("", None, ways, torch.ones(4), rounds=3)
    assert (hand["cpu_ms"], ours["cpu_ms"]) == (2000, 3000)
    assert (hand["÷ by hand"], ours["÷ by hand"]) == (1, 1.5)
    assert (hand["error"], ours["error"]) == (0, 0.5)


def test_a_policy_in_the_loop_has_a_share_of_the_steps(
    benchmarks: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmarks("imitation")
    monkeypatch.setattr(module, "interleaved", lambda *_: TAKEN)
    told = module.rollouts("CartPole-v1", module.Args(steps=32))
    assert (told["raw, steps a second"], told["with the policy"]) == (16, 8)
    assert told["share"] == 0.5


def test_an_iteration_of_gail_is_compared_with_that_of_the_other_package(
    benchmarks: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmarks("imitation")
    monkeypatch.setattr(module, "interleaved", lambda *_: {"ours": [1.0, 3.0, 2.0]})
    monkeypatch.setattr(module, "time_imitation_package", lambda *_: [8.0, 9.0, 7.0])
    (told,) = module.gail(module.Args(steps=64), Path("python"))
    assert told["ratio"] == 0.25


def test_a_step_through_the_attacker_is_compared_with_one_that_is_not(
    benchmarks: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmarks("through_the_attacker")
    taken = {"detached": TAKEN["raw"], "unrolled": TAKEN["ours"]}
    monkeypatch.setattr(module, "interleaved", lambda *_, **__: taken)
    monkeypatch.setattr(module, "games", lambda _: iter(()))
    monkeypatch.setattr(module, "batches", lambda *_: iter([None]))
    study = SimpleNamespace(data=SimpleNamespace(train=None), recipe=SimpleNamespace(batch_size=1))
    assert module.cost_of_a_step(study, rounds=3) == 2
