"""Steps that are captured in a CUDA graph: the same steps, and what cannot be captured."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bilevel import Bilevel, Unrolled
from bilevel.cuda_graphs import CapturedStep
from bilevel.robustness import computing
from tests.gpu.players import image_batch, image_game, ridge_game, rows

# A warning of a driver or a compiler is shown, and fails no test.
pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[2]


def train(game: Any, device: torch.device, *, captured: bool) -> list[dict[str, float]]:
    torch.manual_seed(1)
    step, metrics = CapturedStep(game) if captured else game.step, []
    for k in range(14):
        momentum = 0.5 if k == 12 else 0.9
        game.leader_opt.param_groups[0].update(lr=2.0 ** -(4 + k % 3), momentum=momentum)
        game.leader.model[1].train(k != 11)
        game.leader.model[-1].weight.requires_grad_(k != 9)
        metrics.append(step(image_batch(device, 3 if k in (3, 10) else 4, seed=k)))
    if captured:
        assert isinstance(step, CapturedStep)
        assert step._graph is not None
    return [{name: value.item() for name, value in of_step.items()} for of_step in metrics]


def tensors(game: Bilevel) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(game.state_dict()) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating", "extragradient"])
@pytest.mark.parametrize("method", ["two-step-pgm", "two-step-l2l"])
def test_captured_steps_are_the_same_steps(
    method: str, schedule: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    """Bit for bit, with dropout, random starts and rates that change."""
    made = partial(image_game, device, method, schedule, dropout=0.2, start=0.05)
    plain, captured = made(), made()
    with computing("float32", device):
        expected = train(plain, device, captured=False)
        found = train(captured, device, captured=True)
    assert found == expected
    assert all(map(torch.equal, tensors(captured), tensors(plain)))


@pytest.mark.parametrize(("dropout", "start"), [(0.5, 0.0), (0.0, 0.05), (0.0, 0.0)])
def test_a_replay_draws_new_random_numbers(
    dropout: float, start: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    game: Any = image_game(device, "two-step-pgm", dropout=dropout, start=start)
    game.leader_opt.param_groups[0].update(lr=0.0)
    game.leader.model[1].momentum = 0.0  # nothing but the random numbers differs
    step, batch = CapturedStep(game), image_batch(device)
    losses = [step(batch)["loss"].item() for _ in range(9)]
    assert step._graph is not None
    assert len(set(losses[3:])) == (6 if dropout or start else 1)


def test_captured_steps_of_an_unrolled_solve(device: torch.device) -> None:
    plain, captured = (ridge_game(device, fused=True, adjoint=Unrolled()) for _ in range(2))
    step = CapturedStep(captured)
    for k in range(8):
        batch = {name: values * (1 + k % 3) for name, values in rows(device).items()}
        torch.testing.assert_close(step(batch), plain.step(batch), rtol=1e-6, atol=1e-6)
    assert step._graph is not None
    assert captured.steps == plain.steps == 8


def test_steps_are_captured_anew_where_a_number_has_changed(device: torch.device) -> None:
    plain, captured = (ridge_game(device, fused=True, adjoint=Unrolled()) for _ in range(2))
    step, graphs = CapturedStep(captured), []
    for k in range(12):
        plain.solver.steps = captured.solver.steps = 300 if k < 6 else 200
        torch.testing.assert_close(step(rows(device)), plain.step(rows(device)))
        graphs.append(step._graph)
    assert graphs[3] is graphs[8]
    assert graphs[9] is not graphs[8]
    assert graphs[9] is graphs[11]


def test_a_step_that_waits_cannot_be_captured(tmp_path: Path) -> None:
    """In a process of its own, whose random numbers the broken capture leaves unusable."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys, types
import torch
ours = sys.modules["tests"] = types.ModuleType("tests")  # whatever package of that name there is
ours.__path__ = ["tests"]
from bilevel import BilevelError, Unrolled
from bilevel.cuda_graphs import CapturedStep
from tests.gpu.players import Decay, ridge_game, rows

device, loss = torch.device("cuda"), Decay.loss
Decay.loss = lambda *given: loss(*given) * (1.0 if loss(*given).item() > 0 else 2.0)
step = CapturedStep(ridge_game(device, fused=True, adjoint=Unrolled()))
try:
    for _ in range(4):
        step(rows(device))
except BilevelError as error:
    print(error)
"""
    )
    command, path = [sys.executable, str(script)], {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **path}, capture_output=True, text=True, check=False
    )
    assert "a step cannot be captured in a CUDA graph (" in ended.stdout, ended.stderr
