"""On another device: nothing lies on the wrong one, and steps do not wait for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import accelerator

pytestmark = pytest.mark.skipif(not accelerator.AVAILABLE, reason="torch before 2.10")


def run(script: Path | str, *arguments: object) -> tuple[str, dict[str, int]]:
    """What a script prints on the device, and how often it waited at which line."""
    command = [sys.executable, "tests/accelerator.py", script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(accelerator.ROOT)}
    ended = subprocess.run(
        list(map(str, command)),
        cwd=accelerator.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    *printed, waits = ended.stdout.splitlines()
    return "\n".join(printed), json.loads(waits)


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


@pytest.mark.parametrize("method", ["pgm", "two-step-l2l", "conv-rnn"])
def test_a_step_does_not_wait(method: str, tmp_path: Path) -> None:
    """Under any schedule, from the second step on: the first one looks at its answer."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import torch
from bilevel import ZeroSum
from bilevel.alias import SCHEDULES
from bilevel.robustness import Attacker, Batch, Linf, Recipe, build_model, make_game, make_solver

attacker = Attacker("conv-rnn" if {method!r} == "conv-rnn" else "wide", width=4, gradient_skip=1.0)
method = {method!r}.replace("conv-rnn", "two-step-l2l")
for name, make in SCHEDULES.items():
    follower = Linf(0.1, start=0.01)
    model = build_model("small-cnn", channels=1, classes=10)
    solver = make_solver(method, eps=0.1, channels=1, attacker=attacker, pgm_steps=2)
    for network in (model, solver):
        network.to("pretend", memory_format=torch.channels_last)
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4))
    batch = Batch(batch.x.to("pretend"), batch.y.to("pretend"))
    game = make_game(ZeroSum(model, follower), follower, solver, Recipe(), schedule=make())
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


QUIET = (
    "bilevel/adjoints/base",
    "bilevel/frozen",
    "bilevel/game.py",
    "bilevel/schedules",
    "bilevel/solvers",
    "bilevel/updates",
    "bilevel/robustness/networks/averaging",
    "bilevel/robustness/data/batches",
    "bilevel/robustness/threats",
)
"""Where a step is: nothing there waits."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adv_training")
    methods = "pgm", "two-step-l2l"
    command = "--smoke", "--device", "pretend", "--ema", "0.9", "--method", *methods
    printed, waits = run("applications/adv_training.py", *command, "--out", out)
    assert "two-step-l2l" in printed
    assert not [line for line in waits if line.startswith(QUIET)]
    return out


def test_a_trained_classifier_is_attacked_there(trained: Path, tmp_path: Path) -> None:
    command = "--smoke", "--device", "pretend", "--no-curves", "--out", tmp_path
    printed, _ = run("applications/robust_eval.py", trained / "two-step-l2l", *command)
    assert "worst case" in printed


def test_a_run_goes_on_there(trained: Path) -> None:
    command = "--smoke", "--device", "pretend", "--ema", "0.9", "--method", "pgm", "two-step-l2l"
    printed, _ = run("applications/adv_training.py", *command, "--out", trained, "--resume")
    assert "two-step-l2l" in printed


@pytest.mark.parametrize("application", ["ait", "benchmarks/gpu_suite", "hyper_cleaning"])
def test_an_application_runs_there(application: str, tmp_path: Path) -> None:
    script = f"applications/{application}.py"
    _, waits = run(script, "--smoke", "--device", "pretend", "--out", tmp_path)
    assert not [line for line in waits if line.startswith(QUIET)]
