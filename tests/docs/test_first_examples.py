"""The examples that a newcomer copies first run as they are printed, and do what they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from tests.images import image_set
from tests.recipes import run_piece

ROOT = Path(__file__).parents[2]
F64 = torch.float64


def test_the_example_of_the_readme() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    before = model[1].weight.detach().clone()
    loader = [(torch.rand(2, 3, 8, 8), torch.arange(2))]
    names = run_piece(ROOT / "README.md", "import torch\n", {"model": model, "loader": loader})
    assert names["metrics"]["loss"].isfinite()
    assert not torch.equal(model[1].weight, before)
    assert all(parameter.grad is not None for parameter in names["attacker"].parameters())


def test_a_penalty_is_learned() -> None:
    """No other predicts the samples that were held out better, and the first one does worse."""
    torch.manual_seed(0)
    names = run_piece(ROOT / "docs" / "adjoints.md", "import torch\n", {})
    game, leader, batch = names["game"], names["leader"], names["batch"]

    def held_out(log_penalty: Tensor) -> Tensor:
        with torch.no_grad():
            leader.log_penalty.copy_(log_penalty)
            y = game.solve(batch).value
            return (batch["held out x"] @ y - batch["held out t"]).square().mean()

    learned = leader.log_penalty.detach().clone()
    others = [held_out(other) for other in torch.linspace(-6, 0, 13)]
    assert held_out(learned) < 1.001 * min(others)
    assert held_out(learned) < 0.9 * others[-1]


class Program(bilevel.FollowerProblem):
    """min over x of ½xᵀQx + cᵀx with Gx ≤ h; of the two constraints the first is active."""

    sense = "min"
    q = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    g = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64)
    h = torch.tensor([0.5, 5.0], dtype=F64)

    def init(self, batch: None) -> dict[str, Tensor]:
        return {"x": torch.zeros(2, dtype=F64), "l": torch.zeros(2, dtype=F64)}

    def objective(self, leader: Any, y: dict[str, Tensor], batch: None) -> Tensor:
        return y["x"] @ self.q @ y["x"] / 2 + leader.c @ y["x"]

    def solution(self, c: Tensor) -> dict[str, Tensor]:
        active = self.g[:1]
        matrix = torch.cat([torch.cat([self.q, active.T], 1), F.pad(active, (0, 1))])
        x, multiplier = torch.linalg.solve(matrix, torch.cat([-c, self.h[:1]])).split([2, 1])
        return {"x": x, "l": torch.cat([multiplier, multiplier.new_zeros(1)])}


class Costs(bilevel.LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor([-3.0, -1.0], dtype=F64))

    def loss(self, y: dict[str, Tensor], batch: None) -> Tensor:
        return (y["x"] ** 3).sum() + y["l"].sum()


def test_a_program_is_differentiated_through_its_conditions() -> None:
    program, leader = Program(), Costs()
    given = {"Q": program.q, "G": program.g, "h": program.h}

    class Conditions(bilevel.Update):
        needs_gradient = False

        def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> Any:
            page = run_piece(
                ROOT / "docs" / "adjoints.md", "def forward(", {**given, "c": leader.c}
            )
            return page["forward"](self, y, gradient, context, state)

    class Package(bilevel.Solver):
        def answer(self, oracle: Any) -> Any:
            return program.solution(oracle.leader.c)

    adjoint = bilevel.Implicit(fixed_point=Conditions())
    y = adjoint.solve(Package(), program, leader, None).value
    assert y["l"][0] > 0
    assert program.g[1] @ y["x"] < program.h[1]
    (found,) = torch.autograd.grad(leader.loss(y, None), leader.c)
    truth = torch.autograd.grad(leader.loss(program.solution(leader.c), None), leader.c)[0]
    torch.testing.assert_close(found, truth)


def test_a_battery_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images = image_set(20)
    size = images.images[0].numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, len(images.classes)))
    given = {"model": model, "images": images}
    page = ROOT / "docs" / "robustness_evaluation.md"
    run_piece(page, "from dataclasses import replace\n", given)
    assert "of 20 images withstand every attack at ε = 0.0314" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").exists()
