"""The precision of networks and the order of channels, against float32 as torch stores it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from bilevel import BilevelError, ZeroSum
from bilevel.robustness import (
    Batch,
    Linf,
    build_model,
    computing,
    default_precision,
    margin,
)
from bilevel.updates import CNN, max_abs
from tests.robustness.networks.two_step import BATCH, close, make, play

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "ability", "precision"),
    [
        ("cuda", (7, 5), "float32"),
        ("cuda", (8, 0), "bf16"),
        ("cuda", (9, 0), "bf16"),
        ("cpu", {"avx2": True, "amx_bf16": False}, "float32"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, "bf16"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "float32"),
        ("cpu", {"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
    ],
)
def test_the_precision_that_a_device_multiplies(
    device: str, ability: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ability, raising=False)
    assert default_precision(torch.device(device)) == precision


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_what_a_precision_sets_is_set_back(precision: Any) -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]

    def fail() -> None:
        assert [backend.allow_tf32 for backend in backends] == [precision != "float32"] * 2
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), computing(precision, CPU):
        fail()
    assert [backend.allow_tf32 for backend in backends] == before


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "fp32"])
def test_a_precision_of_another_name(precision: Any) -> None:
    with (
        pytest.raises(BilevelError, match=f"precision is '{precision}': .*'bf16'"),
        computing(precision, CPU),
    ):
        raise AssertionError


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_newer_switches_of_a_user_are_set_and_set_back(precision: Any) -> None:
    """They do not mix with the older ones: reading those raises from then on."""
    parts = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [part.fp32_precision for part in parts]
    wanted = "ieee" if precision == "float32" else "tf32"
    try:
        for part, value in zip(parts, ("tf32", "ieee"), strict=True):
            part.fp32_precision = value
        with computing(precision, CPU):
            assert [part.fp32_precision for part in parts] == [wanted, wanted]
        assert [part.fp32_precision for part in parts] == ["tf32", "ieee"]
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value
        torch.set_float32_matmul_precision("highest")


def test_fast_algorithms_are_searched_for_where_that_pays() -> None:
    cudnn = torch.backends.cudnn
    assert not cudnn.benchmark
    with computing("float32", CPU, one_size=True):
        assert cudnn.benchmark
        with computing("float32", CPU):
            assert cudnn.benchmark
    assert not cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    try:
        with computing("float32", CPU, one_size=True):
            assert not cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_in_bf16_a_player_who_has_moved_is_seen_there() -> None:
    network = nn.Linear(3, 2)
    with computing("bf16", CPU):
        assert network(torch.ones(1, 3)).abs().sum() > 0
        nn.init.zeros_(network.weight)
        nn.init.zeros_(network.bias)
        assert network(torch.ones(1, 3)).abs().sum() == 0


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating", "extragradient"])
def test_a_step_in_bf16_is_a_step_in_float32_but_for_rounding(schedule: str) -> None:
    exact, rounded = make(schedule, "small-cnn"), make(schedule, "small-cnn")
    before, moves = copy.deepcopy(list(exact.leader.parameters())), []
    for game, precision in ((exact, "float32"), (rounded, "bf16")):
        with computing(precision, CPU):
            game.step(BATCH)
        after = game.leader.parameters()
        moves.append(torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]))
    assert torch.cosine_similarity(*moves, dim=0) > 0.9


def test_gradients_of_images_survive_bf16_also_where_the_classifier_is_sure() -> None:
    model = build_model("small-cnn", channels=1, classes=10).eval()
    with torch.no_grad():
        first, second = model(BATCH.x).topk(2, dim=1).values.unbind(1)
        for parameter in (model.head.weight, model.head.bias):
            parameter.mul_(10 / (first - second).max())
        sure = Batch(BATCH.x, model(BATCH.x).argmax(1))
        assert model(sure.x).softmax(1).amax(1).max() > 0.999
    for loss in (None, margin):
        follower = Linf(0.1, **({"loss": loss} if loss else {}))
        leader, gradients = ZeroSum(model, follower), []
        for precision in ("float32", "bf16"):
            delta = torch.zeros_like(sure.x).requires_grad_()
            with computing(precision, CPU):
                gain = follower.gain(leader, delta, sure)
            assert gain.dtype == torch.float32
            gradients.append(torch.autograd.grad(gain.sum(), delta)[0].flatten(1))
        norms = [gradient.norm(dim=1) for gradient in gradients]
        assert (norms[1] > norms[0] / 3).all()
        assert torch.cosine_similarity(*map(max_abs, gradients)).min() > 0.9


def test_an_attacker_at_the_edge_of_its_reach_still_learns_in_bf16() -> None:
    update = CNN(1, 0.1, form="two-layer", width=4)
    bias = list(update.parameters())[-1]
    nn.init.constant_(bias, 6.0)
    zeros = torch.zeros_like(BATCH.x)
    with computing("bf16", CPU):
        moved, _ = update(zeros, torch.ones_like(zeros), BATCH.x, None)
    moved.sum().backward()
    assert moved.dtype == torch.float32
    assert bias.grad.abs().min() > 0


def test_the_order_of_channels_changes_nothing() -> None:
    first, last = make(), make()
    for network in (last.leader, last.solver):
        network.to(memory_format=torch.channels_last)
    close(play(last), play(first))
