"""Compiled networks against those that are not."""

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

from bilevel import Bilevel, Iterative, ZeroSum
from bilevel.alias import SCHEDULES
from bilevel.robustness import Linf, build_model, compile_network, recompute_activations
from bilevel.robustness.networks.compilation import is_compiled
from bilevel.updates import CNN
from tests.robustness.networks.two_step import BATCH, close, make, play


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
