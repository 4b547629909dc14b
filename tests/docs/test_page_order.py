"""Pages of the documentation run from top to bottom, as they are printed."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes import PAGES, example

DOCS = Path(__file__).parents[2] / "docs"
FRAMEWORKS = ("pytorch_lightning", "Accelerator(")


def run(text: str, names: dict[str, Any]) -> dict[str, Any]:
    """Runs all code of a text, but what needs another framework."""
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if not any(framework in code for framework in FRAMEWORKS):
            exec(code, names)
    return names


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning", "ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_recipes_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the minute that a C++ compiler takes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    names = example(tmp_path)
    if page.stem == "recipes_learning":  # which continues the page on solvers
        run((DOCS / "recipes_solvers.md").read_text(), names)
    run(page.read_text(), names)


def test_the_verdict_is_that_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "minmax.md").read_text()
    run(text, {})
    (quoted,) = re.findall(r"^(> .*?)\n\n", text, re.M | re.S)
    assert capsys.readouterr().out.split() == quoted.replace("> ", "").split()
