"""`replicated` and `summed`: a y that all samples share, solved by several processes as by one."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel import distributed
from bilevel.distributed import SyncBatchNorm, replicated, summed
from bilevel.distributed.sharing import is_summed
from bilevel.updates import Gradient
from tests import jobs

ADJOINTS = {
    "unrolled": lambda: bilevel.Unrolled(),
    "recomputed": lambda: bilevel.Unrolled(recompute=True),
    "implicit": lambda: bilevel.Implicit(tolerance=1e-6),  # the last steps follow rounding
    "penalty": lambda: bilevel.Penalty(0.1),
    "forward": lambda: bilevel.Forward(),
}


class Fit(bilevel.FollowerProblem):
    """min over y of the mean of σ(θᵢ) CEᵢ(y) + c‖y‖²; seven samples, in shares of 3 and 4."""

    sense = "min"

    def init(self, batch):
        return {"weight": batch.x.new_zeros(3, 5), "bias": batch.x.new_zeros(3)}

    def objective(self, leader, y, batch):
        own = distributed.shard(7)
        logits = F.linear(batch.x[own], **replicated(y)).tanh()
        losses = F.cross_entropy(logits, batch.y[own], reduction="none")
        weights = replicated(leader.logits)[own].sigmoid()
        decay = 0.05 * sum(leaf.square().sum() for leaf in y.values())
        return summed((weights * losses).sum() / 7) + decay


class Cleaning(bilevel.LeaderProblem):
    """The mean of CE over five other samples, in shares of 2 and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(7, dtype=torch.float64))

    def loss(self, y, batch):
        own = slice(7 + distributed.shard(5).start, 7 + distributed.shard(5).stop)
        logits = F.linear(batch.x[own], **replicated(y))
        return summed(F.cross_entropy(logits, batch.y[own], reduction="sum") / 5)


def train(adjoint: bilevel.Adjoint) -> dict[str, Tensor]:
    """Three steps: what has become of θ, and the last metrics."""
    torch.manual_seed(0)
    batch = bilevel.robustness.Batch(torch.randn(12, 5).double(), torch.arange(12) % 3)
    leader = Cleaning()
    game = bilevel.Bilevel(
        leader,
        Fit(),
        bilevel.Iterative(Gradient(0.5), steps=20),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=10.0),
        adjoint=adjoint,
    )
    for _ in range(3):
        metrics = game.step(batch)
    return {"theta": leader.logits.detach(), **metrics}


def together(folder: Path) -> None:
    """All adjoints, in one of two processes."""
    distributed.join()
    found = {name: train(adjoint()) for name, adjoint in ADJOINTS.items()}
    torch.save(found, folder / f"{distributed.rank()}.pt")
    distributed.leave()


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_two_processes_take_the_steps_of_one_with_every_adjoint(tmp_path: Path) -> None:
    code = (
        "import sys, types; sys.modules['tests'] = tests = types.ModuleType('tests'); "
        "tests.__path__ = ['tests']; from tests.distributed import test_sharing as this; "
        f"this.together(this.Path({str(tmp_path)!r}))"
    )
    ended = jobs.launch("-c", code)
    assert [end.status for end in ended] == [0, 0], ended
    for name, adjoint in ADJOINTS.items():
        alone = train(adjoint())
        assert alone["theta"].abs().max() > 1e-3
        for rank in range(2):
            torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt")[name], alone)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """As if a second process computed the same as this one; what the two have exchanged."""
    exchanged: list[Tensor] = []
    monkeypatch.setattr("bilevel.distributed.pool.world_size", lambda: 2)
    monkeypatch.setattr(
        dist, "all_reduce", lambda flat: exchanged.append(flat.clone()) or flat.mul_(2)
    )
    return exchanged


def test_derivatives_of_any_order_are_those_of_the_sum(two: list[Tensor]) -> None:
    """Of y³ + y³ in two processes, with one exchange in each pass."""
    y = {
        "a": torch.tensor([[1.0, 2.0]]).T.requires_grad_(),
        "b": torch.ones((), requires_grad=True),
    }
    here = replicated(y)
    q = summed(here["a"].pow(3).sum() + here["b"].pow(3))
    assert q.item() == 2 * (1 + 8 + 1)
    first = torch.autograd.grad(q, list(y.values()), create_graph=True)
    torch.testing.assert_close(first, (torch.tensor([[6.0], [24.0]]), torch.tensor(6.0)))
    assert len(two) == 2
    second = torch.autograd.grad(first[0].sum() + first[1], list(y.values()), create_graph=True)
    torch.testing.assert_close(second, (torch.tensor([[12.0], [24.0]]), torch.tensor(12.0)))
    assert len(two) == 3
    third = torch.autograd.grad(second[0].sum(), y["a"])
    torch.testing.assert_close(third, (torch.tensor([[12.0], [12.0]]),))


def test_a_sum_is_told_from_a_part_of_one() -> None:
    y = torch.ones(4, 2, requires_grad=True)
    part = SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(2))(replicated(y)).square().mean()
    synchronised = replicated(summed(y.sum(0))).square().sum()  # as SyncBatchNorm computes
    assert [is_summed(one) for one in (part, synchronised, y.detach())] == [False] * 3
    assert is_summed(summed(part) + y.square().sum())


def test_a_sum_of_a_long_part() -> None:
    """Python would overflow its stack when it frees a graph that it has walked through whole."""
    part = y = torch.ones((), requires_grad=True)
    for _ in range(100_000):
        part = part * y
    assert is_summed(summed(part))
    assert not is_summed(part)


PAGE = (jobs.ROOT / "docs" / "distributed.md").read_text()
(EXAMPLE,) = re.findall(
    r"^## One y for the samples of all processes\n.*?```python\n(.*?)```", PAGE, re.M | re.S
)


def test_two_processes_clean_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/distributed.md."""
    monkeypatch.chdir(tmp_path)
    Path("example.py").write_text(EXAMPLE)
    with pytest.raises(SystemExit):
        runpy.run_path("example.py")
    alone = torch.load("cleaning.pt")
    assert alone["logits"].std() > 0.01
    Path("cleaning.pt").unlink()
    run = f"import os, runpy; os.chdir({str(tmp_path)!r}); runpy.run_path('example.py')"
    ended = jobs.launch("-c", run)
    assert [end.status for end in ended] == [0, 0], ended
    torch.testing.assert_close(torch.load("cleaning.pt"), alone, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("two")
def test_a_part_stays_what_it_was_when_it_is_summed() -> None:
    part = torch.tensor([3.0, 4.0])
    assert summed(part).tolist() == [6.0, 8.0]
    assert part.tolist() == [3.0, 4.0]
