"""What a training step costs, counted and measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.applications.conftest import Ended, Suite, one_line

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("method", "simultaneous", "alternating"),
    [
        ("plain", (3, 0), (3, 0)),
        ("fgsm", (5, 0), (5, 0)),
        ("pgm", (23, 0), (23, 0)),
        ("naive-l2l", (3, 3), (5, 4)),
        ("grad-l2l", (5, 3), (9, 4)),
        ("two-step-l2l", (7, 6), (13, 8)),
    ],
)
def test_steps_cost_what_is_counted_by_hand(
    suite: Suite, method: str, simultaneous: tuple[int, int], alternating: tuple[int, int]
) -> None:
    """In passes of a wide network, whose first convolution is nothing, and of the attacker."""
    steps = suite("steps")
    size = steps.Size("wrn-10-10", 32, 1)
    for schedule, (f, g) in (("simultaneous", simultaneous), ("alternating", alternating)):
        counted = steps.count(size, method, schedule, CPU)
        share = counted["attacker_forward"] / counted["classifier_forward"]
        expected = f + g * share
        assert counted["step_in_classifier_forwards"] == pytest.approx(expected, rel=2e-3)


def test_a_product_and_its_sum_are_counted_once(suite: Suite) -> None:
    steps, products = suite("steps"), []
    size = steps.Size("wrn-10-1", 4, 2, image_size=16)
    network = size.classifier().eval()

    def note(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        products.append(out.numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note)
    network(torch.zeros(1, *size.shape()))
    assert steps.count(size, "plain", "simultaneous", CPU)["classifier_forward"] == sum(products)


def test_a_measurement(suite: Suite) -> None:
    steps, timing = suite("steps"), suite("measuring")
    cases = [
        steps.Case(method, "simultaneous", precision)
        for precision in ("float32", "bf16")
        for method in ("pgm", "grad-l2l")
    ]
    told: list[str] = []
    size = steps.Size("wrn-10-1", 4, 4, image_size=16)
    records = timing.measure(size, cases, CPU, 3, told.append)
    assert told[-1] == "grad-l2l, simultaneous, bf16"
    for record, case in zip(records, cases, strict=True):
        assert (record["method"], record["precision"]) == (case.method, case.precision)
        arithmetic = 2 * 4 * record["step"] / record["seconds"]
        assert record["flops_per_second"] == pytest.approx(arithmetic)
    pgm, grad, *_ = records
    assert pgm["ratio_to_pgm"] == pgm["ratio_to_pgm_max"] == 1
    assert 0 < grad["ratio_to_pgm_min"] <= grad["ratio_to_pgm"]  # how small is the machine's affair
    assert grad["peak_mib"] > pgm["peak_mib"] > records[2]["peak_mib"]  # bf16 takes less


def test_a_time_is_a_median_and_its_ratio_that_to_pgm_in_one_pass(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same precision, round by round."""
    steps, measuring = suite("steps"), suite("measuring")
    times = {
        steps.Case("pgm"): [1.0, 2.0, 8.0],
        steps.Case("pgm", "alternating"): [9.0, 9.0, 9.0],
        steps.Case("pgm", precision="bf16"): [0.5, 0.5, 0.5],
        steps.Case("plain", "alternating"): [2.0, 3.0, 4.0],
        steps.Case("plain", precision="bf16"): [1.0, 1.0, 1.0],
    }
    game = SimpleNamespace(turn=None, peak_mib=1.0)
    monkeypatch.setattr(measuring, "set_up", lambda *_: game)
    monkeypatch.setattr(measuring, "count", lambda *_: {"step": 6.0})
    monkeypatch.setattr(measuring, "interleaved", lambda *_: times)
    size = steps.Size("wrn-10-1", 4, 2, image_size=16)
    *_, plain, rounded = measuring.measure(size, [*times], CPU, 3, lambda _: None)
    told = [plain[f"ratio_to_pgm{part}"] for part in ("", "_min", "_max")]
    assert [plain["seconds"], *told] == [3, 1.5, 0.5, 2]
    assert plain["flops_per_second"] == 2 * 6 * 2 / 3  # of two images
    assert rounded["ratio_to_pgm"] == 2


def test_memory_is_that_of_networks_and_optimizers_and_of_what_a_step_makes(suite: Suite) -> None:
    steps, measuring = suite("steps"), suite("measuring")
    bench = steps.Bench(steps.Size("wrn-10-1", 4, 4, image_size=16), CPU)
    game = bench.game(steps.Case("plain"))
    game.step(bench.batch)
    moved = sum(parameter.nbytes for parameter in game.leader.parameters())
    rest = sum(buffer.nbytes for buffer in game.leader.buffers())
    kept = (2 * moved + rest) / 2**20  # with the momentum
    assert measuring.peak(game, lambda: None, CPU) == pytest.approx(kept)
    assert all(parameter.grad is None for parameter in game.leader.parameters())
    made = measuring.peak(game, lambda: torch.ones(2**18), CPU)
    assert made == pytest.approx(kept + 1, abs=1e-3)


def test_a_case_that_fails_does_not_cost_the_others_their_figures(suite: Suite) -> None:
    steps = suite("steps")
    cases = [steps.Case("plain", graphs=True), steps.Case("plain")]  # of CUDA there is none
    told: list[str] = []
    good, bad = suite("measuring").measure(steps.Size("wrn-10-1", 4, 4), cases, CPU, 1, told.append)
    assert good["seconds"] > 0
    assert bad["graphs"]
    assert told[1] == f"  failed: {bad['failed']}"


def test_what_was_not_compiled_is_not_taken_for_it(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph of an attacker fails, after which the other cases were set up already."""
    steps, timing = suite("steps"), suite("measuring")
    compiled: list[object] = []

    def compiler(graph: Any, _: object) -> Any:
        compiled.append(graph)
        if len(compiled) > 2:
            raise RuntimeError("no more")
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    cases = [steps.Case(method, compiled=True) for method in ("plain", "grad-l2l")]
    size = steps.Size("wrn-10-1", 4, 4, image_size=16)
    with pytest.warns(UserWarning, match="not compiled"):
        records = timing.measure(size, cases, CPU, 1, lambda _: None)
    failed = {one["method"] for one in records if "could not be compiled" in one.get("failed", "")}
    assert "grad-l2l" in failed
    assert {one["method"] for one in records} == {"plain", "grad-l2l"}


def test_a_timed_game_stays_where_it_is(suite: Suite) -> None:
    """Steps of size zero: figures of a thousandth step are those of the first."""
    steps = suite("steps")
    bench = steps.Bench(steps.Size("wrn-10-1", 4, 4, image_size=16), CPU)
    game = bench.game(steps.Case("two-step-l2l"))
    before = [p.clone() for player in (game.leader, game.solver) for p in player.parameters()]
    steps.take(game.step, bench.batch, "float32")
    after = [p for player in (game.leader, game.solver) for p in player.parameters()]
    assert all(map(torch.equal, before, after))
    assert bench.game(steps.Case("pgm")).leader.model is game.leader.model


def test_the_rate_of_matrix_products(suite: Suite) -> None:
    assert 1e9 < suite("measuring").matrix_rate("float32", CPU) < 1e14


def test_step_cost(suite: Suite, call: Callable[..., Ended], tmp_path: Path) -> None:
    """`applications/benchmarks/step_cost.py` too is made of these parts."""
    module = suite("step_cost")
    ended = call(module, "--smoke", "--method", "pgm", "two-step-l2l", "--out", tmp_path)
    assert ended.status == 0, ended.err
    *steps, overhead = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(steps) == 4
    assert suite("tables").cost(steps) in ended.out
    assert overhead["ratio_min"] <= overhead["ratio"] <= overhead["ratio_max"]
    ended = call(module, "--method", "pgn")
    assert (ended.status, "there is no method 'pgn': did you mean pgm" in ended.err) == (2, True)


def test_step_cost_tells_what_failed_beside_what_it_timed(
    suite: Suite, call: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, set_up = suite("step_cost"), suite("measuring").set_up

    def out_of_memory(bench: Any, case: Any) -> Any:
        if case.method == "pgm":
            raise RuntimeError("out of memory")
        return set_up(bench, case)

    monkeypatch.setattr(suite("measuring"), "set_up", out_of_memory)
    ended = call(module, "--smoke", "--method", "plain", "pgm", "--out", tmp_path)
    assert re.search("2 measurements failed, .*results.json tells", one_line(ended))
    assert "plain" in ended.out
