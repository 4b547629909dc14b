"""`Snapshot`: what runs again sees modules and random numbers as they were, and leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import nn

from bilevel import Adjoint, Bilevel, Detached, Implicit, Iterative, Unrolled
from bilevel.robustness import Batch
from bilevel.snapshot import ModuleState, Snapshot
from bilevel.updates import Gradient
from tests import accelerator
from tests.problems import Nearest, Weights


def test_a_block_sees_the_state_as_it_was_and_leaves_it_as_it_is() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, affine=False), nn.Dropout())
    network[1].register_buffer("unset", None)
    images = torch.randn(8, 2)
    network(images)
    torch.manual_seed(3)
    snapshot = Snapshot(network)
    first = network(images)
    statistics = network[0].running_mean.clone()

    network(images)
    network.eval()
    network[0].weight.requires_grad_(False)
    now, random = network[0].running_mean, torch.get_rng_state()
    later = now.clone()
    for _ in range(2):  # the block does not use the snapshot up
        with snapshot.restored():
            assert network.training
            assert network[0].weight.requires_grad
            assert torch.equal(network(images), first)
            assert torch.equal(network[0].running_mean, statistics)
    assert not network.training
    assert not network[0].weight.requires_grad
    assert network[0].running_mean is now
    assert torch.equal(now, later)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_block_computes_in_the_precision_of_the_snapshot() -> None:
    network, x = nn.Linear(2, 2), torch.randn(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        snapshot = Snapshot(network)
    plain = Snapshot(network)
    with snapshot.restored():
        assert network(x).dtype == torch.bfloat16
        with plain.restored():
            assert network(x).dtype == torch.float32
    assert network(x).dtype == torch.float32


@pytest.mark.skipif(not accelerator.AVAILABLE, reason="torch before 2.10")
def test_random_numbers_of_a_device_without_a_context_manager(tmp_path: Path) -> None:
    """As MPS, whose module has no ``device``."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
from bilevel.snapshot import Snapshot

now = [torch.tensor([1], dtype=torch.uint8)]
del torch.pretend.device
torch.pretend.get_rng_state = lambda device: now[-1]
torch.pretend.set_rng_state = lambda state, device: now.append(state)
snapshot = Snapshot(torch.nn.Linear(2, 2).to("pretend"))
now.append(torch.tensor([2], dtype=torch.uint8))
with snapshot.restored():
    print(now[-1].item())
print(now[-1].item())
"""
    )
    assert accelerator.run(script)[0].split() == ["1", "2"]


class Interrupt:
    """Ctrl+C at the n-th line of the functions that restore a module."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, frame: FrameType, event: str, arg: object) -> Interrupt:
        if event == "line" and frame.f_code.co_name in ("_restore", "take_back", "_put"):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("adjoint", [Detached(), Implicit(), Unrolled(recompute=True)], ids=repr)
def test_an_interrupt_leaves_no_leader_frozen(adjoint: Adjoint) -> None:
    """A notebook goes on after it."""
    leader = Weights(3)
    leader.norm = nn.BatchNorm1d(3)  # with buffers
    sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = Iterative(Gradient(0.5), 2)
    game = Bilevel(leader, Nearest(), solver, leader_opt=sgd, adjoint=adjoint)
    batch = Batch(torch.ones(4, 3), torch.zeros(4))
    own, lines, before = [*leader.parameters()], 0, sys.gettrace()
    while True:
        lines += 1
        sys.settrace(Interrupt(lines))
        try:
            game.step(batch)
        except KeyboardInterrupt:
            assert leader.training
            assert [*map(id, leader.parameters())] == [*map(id, own)]
            assert all(parameter.requires_grad for parameter in own)
        else:
            break
        finally:
            sys.settrace(before)
    assert lines > 20


def test_a_block_inside_its_own_block() -> None:
    layer = nn.Dropout()
    state = ModuleState(layer)
    layer.eval()
    with state:
        with state:
            assert layer.training
        assert layer.training
    assert not layer.training
