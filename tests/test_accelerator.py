"""On another device: nothing lies on the wrong one, and steps do not wait for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import accelerator
from tests.accelerator import run

pytestmark = pytest.mark.skipif(not accelerator.AVAILABLE, reason="torch before 2.10")


def test_the_device_tells_what_a_gpu_would(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
from torch import nn

x = torch.ones(2, 3, device="pretend")
layer = nn.Linear(3, 4).to("pretend")
layer(x).square().mean().backward()
assert layer.weight.grad.device == x.device == torch.device("pretend:0")
copy = x.to("cpu", non_blocking=True)
for mistake in (
    lambda: x + torch.ones(3),
    lambda: torch.rand(2, device="pretend", generator=torch.Generator()),
    lambda: x.numpy(),
):
    try:
        mistake()
    except (RuntimeError, TypeError) as error:
        print(str(error))
torch.full((), 5.0, device="pretend")
uploads = len(torch.pretend.uploads)
torch.tensor(5.0, device="pretend")
assert len(torch.pretend.uploads) == uploads + 1
print(x.sum().item())
print(x[x > 0].shape)
"""
    )
    printed, waits = run(script)
    assert printed.splitlines() == [
        "add: expected all tensors to be on the same device",
        "rand: expected a 'pretend' device type for generator",
        "can't convert pretend device type tensor to numpy",
        "6.0",
        "torch.Size([6])",
    ]
    assert sum(waits.values()) == 2


@pytest.mark.parametrize(
    ("method", "norm", "bounds", "schedules"),
    [
        ("two-step-pgm", "linf", "(0, torch.ones(8, device='pretend'))", "SCHEDULES"),
        ("two-step-l2l", "linf", "(0, 1)", "SCHEDULES"),
        ("conv-rnn", "linf", "(0, 1)", "['simultaneous']"),
        ("grad-l2l", "l2", "(0, 1)", "['simultaneous']"),
    ],
)
def test_a_step_does_not_wait(
    method: str, norm: str, bounds: str, schedules: str, tmp_path: Path
) -> None:
    """From the second step on: the first one looks at its answer."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import torch
from bilevel import ZeroSum
from bilevel.alias import SCHEDULES
from bilevel.robustness import (
    NORMS, Attacker, Batch, Recipe, build_model, make_game, make_solver
)

form = "conv-rnn" if {method!r} == "conv-rnn" else "wide"
attacker = Attacker(form, width=4, gradient_skip=1.0)
method = {method!r}.replace("conv-rnn", "two-step-l2l")
for name in {schedules}:
    follower = NORMS[{norm!r}](0.1, start=0.01, bounds={bounds})
    model = build_model("small-cnn", channels=1, classes=10)
    solver = make_solver(method, eps=0.1, channels=1, attacker=attacker, norm={norm!r})
    for network in (model, solver):
        network.to("pretend", memory_format=torch.channels_last)
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4))
    batch = Batch(batch.x.to("pretend"), batch.y.to("pretend"))
    schedule = SCHEDULES[name]()
    game = make_game(ZeroSum(model, follower), follower, solver, Recipe(), schedule=schedule)
    game.step(batch)
    before = len(torch.pretend.waits), len(torch.pretend.uploads)
    for _ in range(6 if name == "lookahead" else 2):
        metrics = game.step(batch)
    assert {{m.device.type for m in metrics.values()}} == {{"pretend"}}
    found = torch.pretend.waits[before[0]:] + torch.pretend.uploads[before[1]:]
    assert found == [], (name, found)
    # A state that was read on the CPU goes on where the game is.
    state = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.cpu(), game.state_dict())
    game.load_state_dict(state)
    game.step(batch)
print("done")
"""
    )
    assert run(script)[0] == "done"


@pytest.mark.parametrize("adjoint", ["Unrolled()", "Unrolled(recompute=True)"])
def test_a_step_with_an_adjoint_does_not_wait(adjoint: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import torch
from bilevel import Bilevel, FollowerProblem, Iterative, LeaderProblem, Unrolled
from bilevel.updates import Gradient

class Weights(LeaderProblem):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(3))

    def loss(self, y, batch):
        return y.square().mean()

class Nearest(FollowerProblem):
    sense = "min"

    def init(self, batch):
        return torch.zeros_like(batch)

    def objective(self, leader, y, batch):
        return (y - leader.w * batch).square().sum(1)

leader = Weights().to("pretend")
optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
solver = Iterative(Gradient(0.1), 4)
game = Bilevel(leader, Nearest(), solver, leader_opt=optimizer, adjoint={adjoint})
batch = torch.rand(4, 3, device="pretend")
game.step(batch)
before = len(torch.pretend.waits), len(torch.pretend.uploads)
game.step(batch)
found = torch.pretend.waits[before[0]:] + torch.pretend.uploads[before[1]:]
assert found == [], found
print("done")
"""
    )
    assert run(script)[0] == "done"


def test_a_random_search_does_not_wait(tmp_path: Path) -> None:
    """With the cross entropy, whose sign does not say which images are misclassified."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
from bilevel import ZeroSum
from bilevel.robustness import Batch, Linf, Square, build_model

model = build_model("small-cnn", channels=1, classes=10).to("pretend").eval()
batch = Batch(torch.rand(4, 1, 8, 8).to("pretend"), torch.arange(4).to("pretend"))
follower = Linf(0.1)
before = len(torch.pretend.waits), len(torch.pretend.uploads)
Square(4).solve(follower, ZeroSum(model, follower), batch)
found = torch.pretend.waits[before[0]:] + torch.pretend.uploads[before[1]:]
assert found == [], found
print("done")
"""
    )
    assert run(script)[0] == "done"


def test_a_graph_repeats_what_was_recorded(tmp_path: Path) -> None:
    """As CUDA's does: without Python, with the host's numbers of then, in the same memory."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch

x, given, number = torch.ones(2, device="pretend"), torch.ones(2, device="pretend"), 3.0
gpu, host = torch.pretend, torch.tensor(5.0)
graph = gpu.CUDAGraph()
with gpu.graph(graph):
    x.add_(given * number).add_(host)
    total = x.sum()
print(x.cpu().tolist())  # nothing was computed
number = host.fill_(100.0)
given.fill_(2.0)
graph.replay()
print(x.cpu().tolist(), total.item())
x.zero_()
graph.replay()
print(x.cpu().tolist(), total.item())
for forbidden in (x.sum().item, lambda: torch.tensor(5.0, device="pretend")):
    try:
        with gpu.graph(gpu.CUDAGraph()):
            forbidden()
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
    )
    assert run(script)[0].splitlines() == [
        "[1.0, 1.0]",
        "[12.0, 12.0] 24.0",
        "[11.0, 11.0] 22.0",
        "_local_scalar_dense: operation not permitted when stream is capturing",
        "copy_: operation not permitted when stream is capturing",
    ]


QUIET = (
    "bilevel/adjoints/base",
    "bilevel/frozen",
    "bilevel/game.py",
    "bilevel/schedules",
    "bilevel/solvers",
    "bilevel/updates",
    "bilevel/robustness/networks/averaging",
    "bilevel/robustness/data/batches",
    "bilevel/robustness/threats/interpolation",
    "bilevel/robustness/threats/losses",
    "bilevel/robustness/threats/perturbation",
)
"""Where a step is: nothing there waits. (A threat model looks at the images of the first one.)"""

TRAIN = (
    "applications/adv_training.py",
    *("--smoke", "--device", "pretend", "--ema", "0.9", "--batch-size", "48"),
    *("--method", "pgm", "two-step-l2l", "--warm-start"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adv_training")
    printed, waits = run(*TRAIN, "--out", out)
    assert "two-step-l2l" in printed
    assert not [line for line in waits if line.startswith(QUIET)]
    return out


def test_a_trained_classifier_is_attacked_there(trained: Path, tmp_path: Path) -> None:
    command = "--smoke", "--device", "pretend", "--no-curves", "--out", tmp_path
    printed, _ = run("applications/robust_eval.py", trained / "two-step-l2l", *command)
    assert "worst case" in printed


def test_a_run_goes_on_there(trained: Path) -> None:
    printed, _ = run(*TRAIN, "--out", trained, "--resume")
    assert "two-step-l2l" in printed


def test_a_run_of_captured_steps_is_the_same_run(trained: Path, tmp_path: Path) -> None:
    run(*TRAIN, "--cuda-graphs", "on", "--out", tmp_path)
    tables = [json.loads((out / "results.json").read_text()) for out in (trained, tmp_path)]
    for plain, captured in zip(*(table["results"] for table in tables), strict=True):
        for name in ("clean", "pgm20", "pgm100", "own_attacker", "best_epoch"):
            assert plain[name] == captured[name]


@pytest.mark.parametrize(
    ("application", "flags"),
    [
        ("ait", ("--method", "ait", "grad-l2l")),
        ("benchmarks/gpu_suite", ()),
        ("hyper_cleaning", ()),
    ],
)
def test_an_application_runs_there(
    application: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    script = f"applications/{application}.py"
    _, waits = run(script, "--smoke", "--device", "pretend", "--out", tmp_path, *flags)
    assert not [line for line in waits if line.startswith(QUIET)]
