"""The checks check under ``python -O`` too, which drops assert statements."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bilevel import testing
from bilevel.testing.requirement import require

MODULES = sorted(Path(testing.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_no_check_is_an_assert_statement(module: Path) -> None:
    nodes = [*ast.walk(ast.parse(module.read_text()))]
    assert not any(isinstance(node, ast.Assert) for node in nodes)
    assert not any(isinstance(node, ast.Name) and node.id == "__debug__" for node in nodes)


def test_a_requirement() -> None:
    require(True, "met")
    with pytest.raises(AssertionError, match=r"^violated$"):
        require(False, "violated")
