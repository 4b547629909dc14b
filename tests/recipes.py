"""The code of the documentation: its recipes, the example that they continue, and other pieces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import bilevel
from bilevel.robustness import Batch, Linf

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("recipes*.md"))
RECIPES = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for page in PAGES
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
}


def example(tmp_path: Path) -> dict[str, Any]:
    """The names of the example that the page continues."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    follower = Linf(8 / 255)
    leader = bilevel.ZeroSum(model, follower)
    solver = bilevel.Iterative(bilevel.updates.CNN(3, 8 / 255, form="two-layer", width=4), steps=2)
    game = bilevel.Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=1e-3),
    )
    loader = [(torch.rand(8, 3, 8, 8), torch.arange(8) % 4) for _ in range(4)]
    held_out = torch.rand(64, 3, 8, 8), torch.arange(64) % 4
    names = ("model", "leader", "follower", "solver", "game", "loader", "held_out")
    given = {name: value for name, value in locals().items() if name in names}
    shared = {"bilevel": bilevel, "torch": torch, "F": F, "Batch": Batch}
    return {**given, **shared, "path": tmp_path / "run.pt", "folder": tmp_path / "checkpoint"}


def follow(names: dict[str, Any], title: str) -> dict[str, Any]:
    assert RECIPES[title], "the recipe has lost its code"
    for code in RECIPES[title]:
        exec(code, names)
    return names


def run_piece(page: Path, start: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names after a page's piece of code that begins so."""
    (code,) = re.findall(rf"^```python\n({re.escape(start)}.*?)^```", page.read_text(), re.M | re.S)
    exec(code, names)
    return names


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
