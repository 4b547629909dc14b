"""`frozen`: within the block a module changes nothing about itself that lasts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bilevel import BilevelError, frozen
from bilevel.snapshot import Snapshot
from tests.problems import BatchNormNet


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_buffers_flags_and_parameters_come_back(mode: str) -> None:
    module = BatchNormNet().train()
    module.layers[1].eval()
    module.layers[0].bias.requires_grad_(False)
    flags = [part.training for part in module.modules()]
    asked = [parameter.requires_grad for parameter in module.parameters()]
    buffers = dict(module.named_buffers())
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    with frozen(module, mode):
        asked_for = [mode == "train" and flag for flag in flags]  # what was kept in eval mode stays
        assert [part.training for part in module.modules()] == asked_for
        assert not any(parameter.requires_grad for parameter in module.parameters())
        module(torch.rand(3, 1, 4, 4))
    assert [part.training for part in module.modules()] == flags
    assert [parameter.requires_grad for parameter in module.parameters()] == asked
    for name, buffer in module.named_buffers():
        assert buffer is buffers[name], name
        assert torch.equal(buffer, copies[name]), name


class Code(nn.Module):
    """A moving average that is read by another part than the one that writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.read = nn.Module(), nn.Module()
        self.written.register_buffer("code", torch.zeros(2))
        self.read.register_buffer("code", self.written.code)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.written.code.mul_(0.5).add_(x, alpha=0.5)
        return self.read.code.clone()


def test_parts_that_share_a_buffer_share_its_copy() -> None:
    module, ones = Code(), torch.ones(2)
    blocks = [frozen(module, "train"), Snapshot(module).restored()]
    for block in blocks:
        with block:
            assert torch.equal(module(ones), ones / 2)
        assert module.read.code is module.written.code
        assert not module.read.code.any()


def test_a_module_in_evaluation_mode_trains_as_a_whole_if_asked() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).eval()
    with frozen(module, "train"):
        assert all(part.training for part in module.modules())
    assert not any(part.training for part in module.modules())


def test_a_network_in_evaluation_mode_trains_within_a_leader_that_is_not() -> None:
    leader = nn.ModuleDict({"model": nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))})
    leader["model"].eval()
    with frozen(leader, "train"):
        assert all(part.training for part in leader.modules())
    assert [part.training for part in leader.modules()] == [True, False, False, False]


def test_layers_in_evaluation_mode_stay_so_while_others_train() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    with frozen(nn.ModuleDict({"model": layers}), "train"):
        assert [layer.training for layer in layers] == [True, False]


def test_a_module_that_overrides_train_is_asked() -> None:
    class AlwaysEval(nn.Dropout):
        def train(self, mode: bool = True) -> AlwaysEval:
            return super().train(False)

    module = nn.Sequential(AlwaysEval()).eval()
    with frozen(module, "train"):
        assert not module[0].training


class Adapted(nn.Linear):
    """A layer that merges its low-rank adapter into its weight to evaluate, as loralib does."""

    def __init__(self) -> None:
        super().__init__(3, 3, bias=False)
        self.weight.requires_grad_(False)
        self.a, self.b = (nn.Parameter(torch.ones(*shape)) for shape in ((1, 3), (3, 1)))
        self.merged = False

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a).detach()
            self.merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (0 if self.merged else x @ self.a.T @ self.b.T)


@pytest.mark.parametrize("training", [True, False])
def test_train_is_called_on_the_way_back_too(training: bool) -> None:
    module = nn.Sequential(nn.Sequential(Adapted(), nn.Dropout()))
    module[0][1].eval()
    module[0][0].train(training)
    before = module[0][0].weight.clone()
    with frozen(module, "eval"):
        assert module[0][0].merged
    assert module[0][0].merged == (not training)
    assert not module[0][1].training
    torch.testing.assert_close(module[0][0].weight, before)


class Lazy(nn.Module):
    """Takes statistics from the first batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("once", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mean is None:
            self.mean = x.mean(0)
            self.register_buffer("deviation", x.std(0))
            del self.once
        return (x - self.mean) / self.deviation


def test_buffers_that_a_forward_pass_fills_adds_or_deletes_are_as_before() -> None:
    lazy = Lazy()
    once = lazy.once
    with frozen(lazy):
        lazy(torch.randn(4, 2))
    assert lazy.mean is None
    assert "deviation" not in dict(lazy.named_buffers())
    assert lazy.once is once


def test_a_parameter_that_is_computed_cannot_be_held_fixed() -> None:
    module = nn.Linear(2, 2)

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self) -> None:
            with frozen(self.inner):
                raise AssertionError

    lent = {"inner.weight": 2 * torch.ones(2, 2, requires_grad=True)}
    with pytest.raises(BilevelError, match=r"computed from others .* or take Unrolled\(\)"):
        torch.func.functional_call(Frozen(), lent)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.11's own
@pytest.mark.parametrize("held", [False, True])
def test_an_exported_program_is_told_apart_and_runs_unflattened(held: bool) -> None:
    network, x = nn.Linear(2, 2).eval(), torch.rand(3, 2)
    program = torch.export.export(network, (x,))
    module = nn.Sequential(program.module()) if held else program.module()
    with pytest.raises(BilevelError, match=r"cannot be set .*: torch.export"), frozen(module):
        pass
    assert all(parameter.requires_grad for parameter in module.parameters())
    with frozen(unflattened := torch.export.unflatten(program)):
        assert torch.equal(unflattened(x), network(x))
