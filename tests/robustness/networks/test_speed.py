"""Switches that make training faster or smaller, against float32 without any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func

from bilevel import Bilevel, BilevelError, Iterative, ZeroSum
from bilevel.alias import SCHEDULES
from bilevel.robustness import (
    Attacker,
    Batch,
    Linf,
    Recipe,
    Trunk,
    build_model,
    compile_network,
    computing,
    default_precision,
    explain_out_of_memory,
    make_game,
    make_solver,
    margin,
    recompute_activations,
)
from bilevel.robustness.networks.compilation import is_compiled
from bilevel.updates import CNN, max_abs

CPU = torch.device("cpu")
BATCH = Batch(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6))


def make(schedule: str = "simultaneous", model: str = "wrn-10-1") -> Bilevel:
    """Two-step learning beside a network with all kinds of blocks."""
    torch.manual_seed(0)
    attacker = Attacker("two-layer", width=4, gradient_skip=0.5)
    solver = make_solver("two-step-l2l", eps=0.1, channels=1, attacker=attacker)
    follower = Linf(0.1)
    leader = ZeroSum(build_model(model, channels=1, classes=10), follower)
    recipe = Recipe(lr=0.01)
    return make_game(leader, follower, solver, recipe, schedule=SCHEDULES[schedule]())


def play(game: Bilevel, steps: int = 3) -> dict[str, Tensor]:
    """What the networks are after some steps."""
    for _ in range(steps):
        game.step(BATCH)
    states = game.leader.state_dict(), game.solver.state_dict()
    return {name: v for state in states for name, v in state.items() if isinstance(v, Tensor)}


close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-6)

# Precision.


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
        model.head.weight.mul_(300)
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


# Compilation.


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_a_compiled_game_is_the_eager_one_but_for_rounding(
    schedule: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as in earnest, without the minutes that a C++ compiler takes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    eager, compiled = make(schedule, "small-cnn"), make(schedule, "small-cnn")
    if recompute:
        recompute_activations(compiled.leader.model)
    for network in (compiled.leader.model, compiled.solver.update):
        compile_network(network)
    copied = copy.deepcopy(compiled.leader.model)
    play(compiled, 1)
    graphs = counters["stats"]["unique_graphs"]
    play(compiled, 2)
    assert counters["stats"]["unique_graphs"] == graphs > 0  # a step leaves nothing to guard
    close(play(compiled, 0), play(eager))
    assert not torch.equal(copied(BATCH.x), compiled.leader.model(BATCH.x))  # a copy is its own


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_a_compiled_attacker_that_steps_twice(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second step writes into statistics that the first one's backward pass has seen.

    With the decompositions of the compiler in earnest, without which this does not work.
    """
    compiler = partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", compiler)
    games = []
    for compiled in (False, True):
        torch.manual_seed(0)
        update = CNN(1, 0.1, width=2)
        follower = Linf(0.1)
        leader = ZeroSum(build_model("small-cnn", channels=1, classes=10), follower)
        if compiled:
            compile_network(update)
            assert is_compiled(update)
        solver = Iterative(update, 2)
        game = Bilevel(
            leader,
            follower,
            solver,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.01),
            solver_opt=torch.optim.SGD(solver.parameters(), lr=0.01),
            schedule=SCHEDULES[schedule](),
        )
        games.append(game)
    close(play(games[1], 2), play(games[0], 2))
    assert is_compiled(games[1].solver.update)


def test_a_process_may_compile_many_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, width))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    before = counters["stats"]["unique_graphs"]
    for width in range(1, 41):
        network = Network(width)
        compile_network(network)
        network(torch.zeros(1, 1))
    assert counters["stats"]["unique_graphs"] == before + 40


def test_what_cannot_be_compiled_computes_as_before_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    eager, compiled = make(model="small-cnn"), make(model="small-cnn")
    compile_network(compiled.leader.model)
    with pytest.warns(UserWarning, match="not compiled, and slower.*no compiler here") as said:
        result = play(compiled)
    assert len(said) == 1
    assert not is_compiled(compiled.leader.model)
    for name, value in play(eager).items():
        assert torch.equal(value, result[name]), name


@pytest.mark.skipif(
    not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"),
    reason="torch compiles backward passes too late",
)
def test_a_backward_pass_that_cannot_be_compiled_falls_back_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A compiler that makes forward graphs and fails at backward ones."""

    def broken(*_: object) -> Callable[..., Any]:
        raise RuntimeError("no backward here")

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=broken)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    eager, compiled = make(model="small-cnn"), make(model="small-cnn")
    compile_network(compiled.leader.model)
    with pytest.warns(UserWarning, match="no backward here"):
        result = play(compiled)
    assert not is_compiled(compiled.leader.model)
    close(play(eager), result)


# Memory.


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating", "extragradient"])
@pytest.mark.parametrize("leader_mode", ["eval", "train"])
def test_recomputed_activations_change_nothing(schedule: str, leader_mode: Any) -> None:
    """Statistics of batch normalisation included, which are taken in once a step."""
    kept, again = make(schedule), make(schedule)
    recompute_activations(again.leader.model)
    for game in (kept, again):
        game.solver.leader_mode = leader_mode
    result = play(again)
    for name, value in play(kept).items():
        assert torch.equal(value, result[name]), name


def test_recomputed_activations_take_less_memory() -> None:
    sizes = []
    for again in (False, True):
        model = build_model("wrn-10-1", channels=1, classes=10)
        if again:
            recompute_activations(model)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(BATCH.x).sum()
        sizes.append(sum(kept.values()))
    assert sizes[1] < sizes[0] / 2


def test_a_network_whose_blocks_are_not_known() -> None:
    with pytest.raises(BilevelError, match=r"Linear has no Trunk: .*build its layers"):
        recompute_activations(nn.Linear(1, 1))
    network = nn.Sequential(Trunk(nn.Linear(1, 1)))
    recompute_activations(network)
    assert network[0].recompute


def test_the_order_of_channels_changes_nothing() -> None:
    first, last = make(), make()
    for network in (last.leader, last.solver):
        network.to(memory_format=torch.channels_last)
    close(play(last), play(first))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_tells_what_helps(error: Exception) -> None:
    told = "out of memory with batches of 128 images: .*--recompute, .* smaller --batch-size"
    with pytest.raises(BilevelError, match=told), explain_out_of_memory(128):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(128):
        raise RuntimeError("shapes differ")
