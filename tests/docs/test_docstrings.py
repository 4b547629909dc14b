"""Docstrings as the documentation reads them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring

PACKAGE = Path(__file__).parents[2] / "bilevel"


def docstrings() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (
                text := ast.get_docstring(node)
            ):
                yield f"{path.name}: {node.name}", inspect.cleandoc(text)


def test_no_colon_makes_a_type_of_what_is_returned() -> None:
    """The type is in the signature; what stands before a colon would be shown as another."""
    config = Config(napoleon_use_rtype=True)
    found = [
        where for where, text in docstrings() if ":rtype:" in str(GoogleDocstring(text, config))
    ]
    assert found == []
