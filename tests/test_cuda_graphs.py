"""Captured steps: what they refuse on a processor, and that they are the same steps on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bilevel import BilevelError, distributed, games
from bilevel.cuda_graphs import CapturedStep
from tests import accelerator
from tests.accelerator import run

has_device = pytest.mark.skipif(not accelerator.AVAILABLE, reason="torch before 2.10")


def test_a_processor_has_no_cuda_graphs() -> None:
    game = games.begin(games.bilinear(), 1.0, 1.0, lr=0.1)
    with pytest.raises(BilevelError, match="the device is cpu: CUDA graphs are for GPUs"):
        CapturedStep(game)


def test_communication_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "CUDAGraph", object, raising=False)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    game = games.begin(games.bilinear(), 1.0, 1.0, lr=0.1)
    with pytest.raises(BilevelError, match="2 processes train together"):
        CapturedStep(game)


def test_tensors_in_other_objects_would_not_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "CUDAGraph", object, raising=False)
    step = CapturedStep(games.begin(games.bilinear(), 1.0, 1.0, lr=0.1))
    with pytest.raises(BilevelError, match="the batch holds a SimpleNamespace"):
        step((torch.zeros(2), SimpleNamespace(x=torch.zeros(2))))


@pytest.mark.parametrize("reason", [torch.OutOfMemoryError("no memory"), KeyboardInterrupt()])
def test_what_ended_a_capture_is_told(
    monkeypatch: pytest.MonkeyPatch, reason: BaseException
) -> None:
    """Though ending a broken capture raises another error."""

    @contextmanager
    def broken(graph: object, pool: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the capture is invalid")

    def step(batch: object) -> None:
        raise reason

    monkeypatch.setattr(torch.cpu, "CUDAGraph", object, raising=False)
    monkeypatch.setattr(torch.cpu, "graph", broken, raising=False)
    captured = CapturedStep(games.begin(games.bilinear(), 1.0, 1.0, lr=0.1))
    monkeypatch.setattr(captured.game, "step", step)
    with pytest.raises(type(reason)):
        captured._capture(())


GAMES = """
import copy
import torch
from torch import nn
from bilevel import Bilevel, BilevelError, ZeroSum
from bilevel.alias import SCHEDULES
from bilevel.robustness import Attacker, Batch, Linf, make_solver
from bilevel.cuda_graphs import CapturedStep

def build(schedule, method="two-step-l2l", fused=True):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
    model, follower = nn.Sequential(*layers, nn.Linear(144, 10)), Linf(0.1, start=0.05)
    attacker = Attacker("two-layer", width=4, gradient_skip=1.0)
    solver = make_solver(method, eps=0.1, channels=1, attacker=attacker)
    for network in (model, solver):
        network.to("pretend")
    leader, phi = ZeroSum(model, follower), list(solver.parameters())
    # Rates that float32 holds exactly, as which the graph reads them.
    alpha = torch.optim.SGD(leader.parameters(), lr=2**-4, momentum=0.9, fused=fused)
    beta = torch.optim.Adam(phi, lr=2**-7, fused=fused) if phi else None
    schedule = SCHEDULES[schedule]()
    return Bilevel(leader, follower, solver, leader_opt=alpha, solver_opt=beta, schedule=schedule)

def train(game, step):
    torch.manual_seed(1)
    metrics = []
    for k in range(14):
        momentum = 0.5 if k == 12 else 0.9
        game.leader_opt.param_groups[0].update(lr=2.0 ** -(4 + k % 3), momentum=momentum)
        game.leader.model[1].train(k != 11)
        game.leader.model[-1].weight.requires_grad_(k != 9)
        size = 3 if k in (3, 10) else 4
        x, y = torch.rand(size, 1, 8, 8), torch.randint(10, (size,))
        metrics.append(step(Batch(x.to("pretend"), y.to("pretend"))))
    return [{name: value.item() for name, value in of_step.items()} for of_step in metrics]
"""
"""Games with everything that a graph might forget, and their training."""


@has_device
@pytest.mark.parametrize(
    ("schedule", "method"),
    [
        ("simultaneous", "two-step-l2l"),
        ("simultaneous", "two-step-pgm"),
        ("alternating", "two-step-l2l"),
        ("extragradient", "two-step-l2l"),
    ],
)
def test_captured_steps_are_the_same_steps(schedule: str, method: str, tmp_path: Path) -> None:
    """Bit for bit, with random starts, dropout, running statistics and rates that change."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
{GAMES}
plain, captured = build({schedule!r}, {method!r}), build({schedule!r}, {method!r})
step = CapturedStep(captured)
assert train(plain, plain.step) == train(captured, step)
assert len(step._batch.x) == 4
for game in (plain, captured):
    game.load_state_dict(copy.deepcopy(game.state_dict()))
assert train(plain, plain.step) == train(captured, step)
leaves = torch.utils._pytree.tree_leaves
for a, b in zip(leaves(plain.state_dict()), leaves(captured.state_dict()), strict=True):
    assert torch.equal(a.cpu(), b.cpu()) if isinstance(a, torch.Tensor) else a == b
waited = len(torch.pretend.waits), len(torch.pretend.uploads)
step(step._batch)
assert (len(torch.pretend.waits), len(torch.pretend.uploads)) == waited
print("done")
"""
    )
    assert run(script)[0] == "done"


@has_device
def test_a_step_that_a_graph_would_not_repeat_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
{GAMES}
for game in (
    build("lookahead"),
    build("optimistic"),
    build("simultaneous", fused=False),
    build("simultaneous", "two-step-pgm", fused=False),
):
    try:
        train(game, CapturedStep(game))
    except BilevelError as error:
        print(error)
"""
    )
    lookahead, optimistic, adam, sgd = run(script)[0].splitlines()
    assert "under Lookahead(inner=Simultaneous()) changes the state ['schedule']['" in lookahead
    assert "under Optimistic() changes the state ['schedule']['last']" in optimistic
    assert "changes the state ['solver_opt']['state'][0]['step'] on the host" in adam
    assert "cannot be captured in a CUDA graph (_local_scalar_dense: operation not" in sgd


@has_device
def test_captured_steps_of_an_unrolled_solve(tmp_path: Path) -> None:
    """A number of the host in a batch is not taken for that of another batch.

    Of data that a batch is a view of, the rest is not kept.
    """
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
from bilevel import Bilevel, FollowerProblem, Iterative, LeaderProblem, Unrolled
from bilevel.cuda_graphs import CapturedStep
from bilevel.updates import Gradient

class Weights(LeaderProblem):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(3))

    def loss(self, y, batch):
        return y.square().mean() * batch["weight"]

class Nearest(FollowerProblem):
    sense = "min"

    def init(self, batch):
        return torch.zeros_like(batch["x"])

    def objective(self, leader, y, batch):
        return (y - leader.w * batch["x"]).square().sum(1)

def train(captured):
    leader = Weights().to("pretend")
    optimizer = torch.optim.Adam(leader.parameters(), lr=2**-4, fused=True)
    solver = Iterative(Gradient(0.1), 4)
    game = Bilevel(leader, Nearest(), solver, leader_opt=optimizer, adjoint=Unrolled())
    step = CapturedStep(game) if captured else game.step
    torch.manual_seed(0)
    losses = []
    for k in range(10):
        data = torch.rand(400, 3, device="pretend")
        batch = {"x": data[:4], "weight": 2.0 if k == 7 else 1.0}
        losses.append(step(batch)["loss"].item())
    if captured:
        assert step._batch["x"].raw.untyped_storage().nbytes() == 4 * 3 * 4
    return losses, leader.w.tolist(), game.steps

assert train(captured=True) == train(captured=False)
print("done")
"""
    )
    assert run(script)[0] == "done"


GAME = """
import warnings
import torch
from bilevel import Bilevel, FollowerProblem, Iterative, LeaderProblem, Unrolled
from bilevel.cuda_graphs import PATIENCE, CapturedStep
from bilevel.updates import Gradient

class Weights(LeaderProblem):
    def __init__(self):
        super().__init__()
        self.w, self.weight = torch.nn.Parameter(torch.ones(3)), 1.0

    def loss(self, y, batch):
        return y.square().mean() * self.weight

class Ball(FollowerProblem):
    sense = "min"

    def __init__(self):
        self.radius, self.centre = 0.2, torch.zeros(3, device="pretend")
        self.settings = {"weights": [1.0]}

    def init(self, batch):
        return torch.zeros_like(batch)

    def objective(self, leader, y, batch):
        weight = self.settings["weights"][0]
        return weight * (y - self.centre - leader.w * batch).square().sum(1)

    def project(self, y, batch):
        return y.clamp(-self.radius, self.radius)

def build():
    leader = Weights().to("pretend")
    optimizer = torch.optim.Adam(leader.parameters(), lr=2**-4, fused=True)
    solver = Iterative(Gradient(0.1), 4)
    return Bilevel(leader, Ball(), solver, leader_opt=optimizer, adjoint=Unrolled())
"""


@has_device
def test_a_number_that_changes_on_the_way_is_seen(tmp_path: Path) -> None:
    """A graph holds those that it was captured with."""
    script = tmp_path / "script.py"
    script.write_text(
        GAME
        + """
def train(captured, change):
    game = build()
    step = CapturedStep(game) if captured else game.step
    torch.manual_seed(0)
    losses, graphs = [], []
    for k in range(20):
        if k == 6:
            change(game)
        size = 2 if k % 5 == 4 else 4  # as at the ends of four epochs
        losses.append(step(torch.rand(size, 3, device="pretend"))["loss"].item())
        graphs.append(captured and step._graph)
    return losses, graphs

far = torch.full((3,), 0.1, device="pretend")
for change in (
    lambda game: None,
    lambda game: setattr(game.solver, "steps", 1),
    lambda game: setattr(game.solver.update, "step", 0.01),
    lambda game: setattr(game.follower, "radius", 0.02),
    lambda game: setattr(game.follower, "centre", far),
    lambda game: game.follower.settings["weights"].insert(0, 0.5),
    lambda game: setattr(game.leader, "weight", 2.0),
):
    losses, graphs = train(True, change)
    changed = graphs[6] is not graphs[-1]  # and not by the smaller batches before
    print(losses == train(False, change)[0], changed, graphs[3] is graphs[8], losses[-1])
"""
    )
    equal, changed, kept, losses = zip(
        *(line.split() for line in run(script)[0].splitlines()), strict=True
    )
    assert {*equal} == {*kept} == {"True"}
    assert [*changed] == ["False"] + 6 * ["True"]  # after three steps as usual
    assert len({*losses}) == 7  # each change makes a difference


@has_device
def test_a_number_that_changes_at_each_step_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        GAME
        + """
for name in ("_calls", "calls"):
    game = build()
    step = CapturedStep(game)
    with warnings.catch_warnings(record=True) as told:
        for k in range(PATIENCE):
            setattr(game.follower, name, k)
            step(torch.ones(4, 3, device="pretend"))
    told = [one for one in told if "were computed as usual" in str(one.message)]
    print(step._graph is not None, len(told))
"""
    )
    assert run(script)[0].split() == ["True", "0", "False", "1"]


@has_device
def test_captured_steps_are_timed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
import torch

sys.path.insert(0, "applications/benchmarks")
from suite.measuring import measure
from suite.steps import Case, Size

cases = [Case("grad-l2l", graphs=graphs) for graphs in (True, False)]
device = torch.device("pretend")
records = measure(Size("wrn-10-1", 4, 4), cases, device, 2, lambda _: None)
print(*("failed" in record for record in records))
"""
    )
    assert run(script)[0] == "False False"
